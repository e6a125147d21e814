"""Flow `sweep-guidance`: how best to sample from a model, within a budget of images.

As a command: `python -m flows.sweep --size digits`. Decided here: the order of the work is
successive halving, by `fractal_model.evaluation.halving`; a stopped sweep goes on with what is
missing, as every setting is a run in MLflow and its images are kept until the end; the best
setting is evaluated by the full protocol, but promotes nothing: that is for params.yaml.
"""

import math
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows import evaluate
from flows.command import run_flow
from flows.evaluation_tasks import publish_table
from flows.failures import report_failure
from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.common.console import progress_bar, say
from fractal_model.common.fingerprint import fingerprint
from fractal_model.common.locks import hold_lock
from fractal_model.common.strict import NotNegativeInt, PositiveInt
from fractal_model.config.evaluation import SweepConfig
from fractal_model.config.params import DEFAULT_FILE, Params, Size, load_params
from fractal_model.config.sampling import SamplingConfig
from fractal_model.evaluation.halving import Rung, lowest_indices, plan_rungs
from fractal_model.evaluation.inputs import EvaluationInputs, computation_fingerprint
from fractal_model.evaluation.sweep_previews import Previews
from fractal_model.metrics.names import FID
from fractal_model.parallel.ray_workers import split_over_workers
from fractal_model.reporting.sweep import SHOWN, sweep_figures, sweep_row
from fractal_model.tracking import registry, runs, store
from fractal_model.tracking.model_source import fetch_registered


@flow(name="sweep-guidance")
@report_failure
def sweep_guidance(
    size: str = "digits",
    model: str | None = None,
    samples: PositiveInt | None = None,
    workers: NotNegativeInt | None = None,
    params_file: Path = DEFAULT_FILE,
) -> dict[str, float]:
    """Find the guidance, logit scale and iterations with the lowest FID; returns them and the
    metrics of the full protocol.

    Many settings are tried with few images, the better ones again with more. Nothing is promoted
    and params.yaml is not changed: the result says what to write there.

    Args:
        size: A size of params.yaml; its section `sweep` has the settings that are tried.
        model: A registered model of the size, as models:/fractal-digits@champion; by default the
            candidate.
        samples: Images of all previews together, instead of params.yaml's; the full protocol of
            the best setting comes on top.
        workers: Ray workers that share the sampling, 0 for as many as the cluster has room for;
            by default the size's. The result is the same.
        params_file: The settings file, relative to the project's folder.
    """
    params = load_params(params_file)
    chosen = params.size(size).with_workers(workers)
    store.connect(params.paths.outputs)
    version = fetch_registered(size, model)
    return _Sweep(params, chosen, version, _settings(params, size, samples)).result()


class _Sweep:
    """One sweep over the settings of one version."""

    def __init__(
        self, params: Params, size: Size, version: registry.RegisteredCheckpoint, sweep: SweepConfig
    ) -> None:
        self._params, self._size, self._version = params, size, version
        self._settings = sweep.settings(size.sampling)
        averaged = size.evaluation.weights == "ema"
        model = load_checkpoint(version.checkpoint).build_model(averaged=averaged)
        inputs = EvaluationInputs(params, size.training.dataset)
        protocol = inputs.protocol(size.evaluation, sampling=size.sampling)
        self._rungs = _plan(size, sweep)
        self._mark = fingerprint(sweep, protocol, computation_fingerprint(model))
        folder = params.paths.outputs / "sweeps" / f"{size.name}-{self._mark[:12]}"
        workers = split_over_workers(size.evaluation.workers, inputs.files)
        self._previews = Previews(model, size, inputs, folder, workers)

    def result(self) -> dict[str, float]:
        """Of the full protocol, and the best setting's guidance and logit scale."""
        folder = self._previews.folder
        with hold_lock(folder.with_suffix(".lock")):
            with self._parent() as run_id:
                best = self._search(run_id)
            # An evaluation is a run of its own, outside the parent.
            evaluation = self._evaluate(best)
            with self._parent():
                runs.log_best_setting(best, evaluation)
            shutil.rmtree(folder, ignore_errors=True)
        say(
            f"best: guidance {best.guidance:g}, logit scale {best.logit_scale:g}, iterations "
            f"{list(best.iterations)}; to use them, write them to sampling.{self._size.name} in "
            f"params.yaml"
        )
        shown = {"guidance": best.guidance, "logit_scale": best.logit_scale}
        return shown | runs.read_metrics(evaluation)

    def _parent(self) -> AbstractContextManager[str]:
        outputs = self._params.paths.outputs
        return runs.sweep_run(self._size, self._version.version, self._mark, outputs)

    def _search(self, parent: str) -> SamplingConfig:
        """The best setting, after all rungs; table and figures are logged to the active run."""
        left: Sequence[SamplingConfig] = self._settings
        counts: list[int] = []
        table: list[dict[str, object]] = []
        kept = (*(rung.settings for rung in self._rungs[1:]), 1)
        for rung, keep in zip(self._rungs, kept, strict=True):
            counts = [*counts, rung.per_class]
            name = self._previews.protocol(self._size.sampling, rung.per_class).label(FID)
            # Prefect binds a method's task when it runs, but not in its annotations.
            fids = [self.preview(parent, each, counts, name) for each in left]  # type: ignore[call-overload]
            table += [sweep_row(each, name, fid) for each, fid in zip(left, fids, strict=True)]
            left = [left[place] for place in lowest_indices(fids, keep)]
        (best,) = left
        self._show(pd.DataFrame(table), best)
        return best

    def _show(self, table: pd.DataFrame, best: SamplingConfig) -> None:
        """Table and figures as artifacts, of MLflow and Prefect."""
        size, first = self._size.name, self._rungs[0].settings
        runs.log_sweep(table, sweep_figures(table, best, size=size, first=first))
        text = f"best: guidance {best.guidance:g}, logit scale {best.logit_scale:g}"
        publish_table(f"sweep-guidance-{size}", table[SHOWN], text)

    @task(name="preview", cache_policy=NO_CACHE)
    def preview(
        self, parent: str, setting: SamplingConfig, counts: Sequence[int], name: str
    ) -> float:
        """FID of a setting with so many images, from its run where that has it; NaN where there is
        none."""
        outputs = self._params.paths.outputs
        with runs.setting_run(self._size, setting, parent, outputs) as known:
            if name in known:
                return known[name]
            total = counts[-1] * self._size.model.num_classes
            with progress_bar(
                f"guidance {setting.guidance:g}, images", total, images=True
            ) as update:
                results = self._previews.measure(setting, counts, update)
            runs.log_preview(results)
        return results.values.get(name, math.nan)

    def _evaluate(self, best: SamplingConfig) -> str:
        """The run that has it by the full protocol, with this setting in place of params.yaml's."""
        sampling = {**self._params.sampling, self._size.name: best}
        params = self._params.model_copy(update={"sampling": sampling})
        size = self._size.model_copy(update={"sampling": best})
        return evaluate.get_or_run_evaluation(params, size, self._version)


def _plan(size: Size, sweep: SweepConfig) -> tuple[Rung, ...]:
    return plan_rungs(
        len(sweep.settings(size.sampling)),
        classes=size.model.num_classes,
        samples=sweep.samples,
        keep=sweep.keep,
        largest=size.evaluation.samples_per_class,
    )


def _settings(params: Params, size: str, samples: int | None) -> SweepConfig:
    """The size's sweep, with another budget where one is given."""
    sweep = params.sweep.get(size, SweepConfig())
    return sweep if samples is None else sweep.model_copy(update={"samples": samples})


def check(
    params: Params, size: str, model: str | None, samples: int | None, workers: int | None
) -> None:
    """Before anything starts. FractalError: as for an evaluation, or a budget that is too small."""
    evaluate.check(params, size, model)
    _plan(params.size(size), _settings(params, size, samples))


def main() -> None:
    run_flow(sweep_guidance, check=check)


if __name__ == "__main__":
    main()
