"""Flow `sweep-guidance`: find the best sampling settings of a model, within a budget of images.

As a command: `python -m flows.sweep --size digits`. Decided here: settings are eliminated by
successive halving (`fractal_model.evaluation.halving`). Every setting is a run in MLflow and its
images are stored until the end, so a stopped sweep continues with the missing ones. The best
setting is evaluated by the full protocol but not promoted: a person writes it to params.yaml.
"""

import math
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path

import pandas as pd
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.common.console import progress_bar, say
from fractal_model.common.fingerprint import fingerprint
from fractal_model.common.locks import hold_lock
from fractal_model.common.strict import NotNegativeInt, PositiveInt
from fractal_model.config.evaluation import SweepConfig
from fractal_model.config.params import DEFAULT_FILE, Params, Size, load_params
from fractal_model.config.serving import ServingConfig
from fractal_model.evaluation.halving import Rung, lowest_indices, plan_rungs
from fractal_model.evaluation.inputs import EvaluationInputs, computation_fingerprint
from fractal_model.evaluation.sweep_previews import Previews
from fractal_model.evaluation.sweep_settings import describe_setting
from fractal_model.metrics.names import FID
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.split import split_over_workers
from fractal_model.reporting.sweep import COLUMNS, sweep_figures, sweep_row
from fractal_model.sampling.guide import pin_guide
from fractal_model.tracking import registry, runs, store
from fractal_model.tracking.model_source import fetch_registered, read_guide, split_weights

from . import evaluate
from .command import flow_command, run_command
from .evaluation_tasks import publish_table
from .failures import report_failure
from .run_names import name_run


@flow(name="sweep-guidance", flow_run_name=name_run("sweep"))
@report_failure
def sweep_guidance(
    size: str = "digits",
    model: str | None = None,
    samples: PositiveInt | None = None,
    workers: NotNegativeInt | None = None,
    params_file: Path = DEFAULT_FILE,
    set: list[str] | None = None,
) -> dict[str, float]:
    """Find the guidance, logit scale, iterations and weights with the lowest FID. Return the
    guidance and logit scale that were found, and the metrics of a full evaluation with them.

    Many settings are tried with few images, and the better ones again with more. Nothing is
    promoted and params.yaml is not changed: the output says what to write there.

    Args:
        size: Name of a size in params.yaml; its section `sweep` has the settings that are tried.
        model: Registered model of the size, for example models:/fractal-digits@champion; by default
            the candidate. With #ema or #ema-0.999 at its end this moving average is used, unless
            the section `sweep` lists weights.
        samples: Number of images that all previews together draw; by default the number in
            params.yaml. The full evaluation of the best setting is not counted.
        workers: Number of Ray workers that share the sampling, or 0 for as many as the cluster has
            room for; by default the number in params.yaml. It does not change the result.
        params_file: Path of the settings file, relative to the project's folder.
        set: Settings that replace those of the file, such as training.digits.epochs=5.
    """
    source, weights = split_weights(model)
    params = load_params(params_file, set).with_weights(size, weights)
    settings = params.size(size).with_workers(workers)
    store.connect(params.paths.outputs)
    version = fetch_registered(size, source)
    return _Sweep(params, settings, version, _sweep_config(params, size, samples)).run()


class _Sweep:
    """One sweep: the search for the best sampling settings of one registered version."""

    def __init__(
        self, params: Params, size: Size, version: registry.RegisteredCheckpoint, sweep: SweepConfig
    ) -> None:
        guide = read_guide(size.sampling.guide, size.model, params.paths.outputs)
        size = size.model_copy(update={"sampling": pin_guide(size.sampling, guide)})
        self._params, self._size, self._version = params, size, version
        self._settings = sweep.settings(size.serving)

        @lru_cache(maxsize=1)  # Settings with equal weights follow each other.
        def build_model(weights: str) -> FractalModel:
            model = load_checkpoint(version.checkpoint).build_model(weights)
            model.guide = guide
            return model

        inputs = EvaluationInputs(params, size.training.dataset)
        protocol = inputs.protocol(size.evaluation, sampling=size.sampling)
        self._rungs = _plan(size, sweep)
        weights = dict.fromkeys(setting.weights for setting in self._settings)
        checksums = [computation_fingerprint(build_model(name)) for name in weights]
        self._fingerprint = fingerprint(sweep, protocol, *checksums)
        folder = params.paths.outputs / "sweeps" / f"{size.name}-{self._fingerprint[:12]}"
        workers = split_over_workers(size.evaluation.workers, inputs.files)
        self._previews = Previews(build_model, size, inputs, folder, workers)

    def run(self) -> dict[str, float]:
        """Search the best setting and evaluate it. Return its guidance and logit scale, and its
        metrics by the full protocol."""
        folder = self._previews.folder
        with hold_lock(folder.with_suffix(".lock")):
            with self._parent_run() as run_id:
                best = self._search(run_id)
            # The evaluation is a separate run, so it is outside the parent run.
            evaluation = self._evaluate(best)
            with self._parent_run():
                runs.log_best_setting(best, evaluation)
            shutil.rmtree(folder, ignore_errors=True)
        self._say_best(best)
        sampling = best.sampling
        setting = {"guidance": sampling.guidance, "logit_scale": sampling.logit_scale}
        return setting | runs.read_metrics(evaluation)

    def _say_best(self, best: ServingConfig) -> None:
        name, iterations = self._size.name, list(best.sampling.iterations)
        is_other = best.weights != self._size.evaluation.weights
        also = f", and weights to evaluation.{name}" if is_other else ""
        say(
            f"best: {describe_setting(best, self._size)}, iterations {iterations}; to use them, "
            f"write them to sampling.{name}{also} in params.yaml"
        )

    def _parent_run(self) -> AbstractContextManager[str]:
        outputs = self._params.paths.outputs
        return runs.sweep_run(self._size, self._version.version, self._fingerprint, outputs)

    def _search(self, parent: str) -> ServingConfig:
        """Try the settings in rounds of successive halving and return the best one. Log a table and
        figures to the sweep's MLflow run, which is active and has the id `parent`."""
        settings: Sequence[ServingConfig] = self._settings
        counts: list[int] = []
        table: list[dict[str, object]] = []
        survivors = (*(rung.settings for rung in self._rungs[1:]), 1)
        for rung, keep in zip(self._rungs, survivors, strict=True):
            counts = [*counts, rung.per_class]
            name = self._previews.protocol(self._size.serving, rung.per_class).label(FID)
            # Prefect binds the task of a method when it runs, but its annotations do not say so.
            fids = [self.measure_fid(parent, s, counts, name) for s in settings]  # type: ignore[call-overload]
            table += [sweep_row(s, name, fid) for s, fid in zip(settings, fids, strict=True)]
            settings = [settings[index] for index in lowest_indices(fids, keep)]
        (best,) = settings
        self._publish(pd.DataFrame(table), best)
        return best

    def _publish(self, table: pd.DataFrame, best: ServingConfig) -> None:
        """Log the table of tried settings and its figures to MLflow, and the table to Prefect."""
        size, first = self._size.name, self._rungs[0].settings
        runs.log_sweep(table, sweep_figures(table, best, size=size, first=first))
        text = f"best: {describe_setting(best, self._size)}"
        publish_table(f"sweep-guidance-{size}", table[COLUMNS], text)

    @task(name="preview", cache_policy=NO_CACHE)
    def measure_fid(
        self, parent: str, setting: ServingConfig, counts: Sequence[int], name: str
    ) -> float:
        """Return the FID of a setting with `counts[-1]` images per class, or NaN if FID has no
        value. `counts` has the images per class of each round so far. If the setting's MLflow run
        has the metric `name` already, nothing is measured."""
        outputs = self._params.paths.outputs
        with runs.setting_run(self._size, setting, parent, outputs) as metrics:
            if name in metrics:
                return metrics[name]
            total = counts[-1] * self._size.model.num_classes
            description = f"{describe_setting(setting, self._size)}, images"
            with progress_bar(description, total, images=True) as update:
                results = self._previews.measure(setting, counts, update)
            runs.log_preview(results)
        return results.values.get(name, math.nan)

    def _evaluate(self, best: ServingConfig) -> str:
        """Evaluate the best setting by the full protocol; return the id of the evaluation's run."""
        name = self._size.name
        guide = self._params.sampling[name].guide  # Its name, from which it is loaded again.
        sampling = best.sampling.model_copy(update={"guide": guide})
        params = self._params.model_copy(
            update={"sampling": {**self._params.sampling, name: sampling}}
        )
        params = params.with_weights(name, best.weights)
        size = params.size(name).with_workers(self._size.evaluation.workers)
        return evaluate.get_or_run_evaluation(params, size, self._version)


def _plan(size: Size, sweep: SweepConfig) -> tuple[Rung, ...]:
    return plan_rungs(
        len(sweep.settings(size.serving)),
        classes=size.model.num_classes,
        samples=sweep.samples,
        keep=sweep.keep,
        largest=size.evaluation.samples_per_class,
    )


def _sweep_config(params: Params, size: str, samples: int | None) -> SweepConfig:
    """Sweep settings of a size. `samples` replaces their budget of images, unless it is None."""
    sweep = params.sweep.get(size, SweepConfig())
    return sweep if samples is None else sweep.model_copy(update={"samples": samples})


def check(
    params: Params, size: str, model: str | None, samples: int | None, workers: int | None
) -> None:
    """Check before the flow starts. FractalError: the budget of images is too small for the
    settings, or data set, reference or model are missing or damaged (`evaluate.check`)."""
    evaluate.check(params, size, model)
    _plan(params.size(size), _sweep_config(params, size, samples))


command = flow_command(sweep_guidance, check=check)


def main() -> None:
    run_command(command)


if __name__ == "__main__":
    main()
