"""Flow `evaluate-fractal`: take a model, measure it by one protocol, compare, promote.

As a command: `python -m flows.evaluate --size digits`. A version that was evaluated under the
same protocol is not evaluated again. What is sampled is kept while the evaluation goes on, so that
one that was stopped goes on with the images that are missing.
"""

import os
import shutil
from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows import evaluation_tasks
from flows.command import run_flow
from flows.evaluation_tasks import PICTURE, publish_table
from flows.failures import report_failure
from fractal_model.checkpoints.checkpoint import load_checkpoint, verify_checkpoint
from fractal_model.common.console import print_results, say
from fractal_model.common.strict import NotNegativeInt
from fractal_model.config.params import DEFAULT_FILE, Params, Size, load_params
from fractal_model.data.manifest import fit_size
from fractal_model.data.prepared import open_prepared
from fractal_model.evaluation import promotion
from fractal_model.evaluation.inputs import EvaluationInputs
from fractal_model.evaluation.prepare_evaluation import prepare_evaluation
from fractal_model.evaluation.promotion import Decision
from fractal_model.evaluation.protocol import Protocol
from fractal_model.tracking import champions, registration, registry, runs, store
from fractal_model.tracking.model_source import REGISTRY_SCHEME, fetch_registered


@flow(name="evaluate-fractal")
@report_failure
def evaluate_fractal(
    size: str = "digits",
    model: str | None = None,
    preview: bool = False,
    workers: NotNegativeInt | None = None,
    wait: bool = True,
    params_file: Path = DEFAULT_FILE,
) -> dict[str, float]:
    """Evaluate a model of a size; returns its metrics.

    A full evaluation of a registered version ends with its promotion where it is better.

    Args:
        size: A row of `models` in params.yaml, such as mar-l.
        model: `models:/fractal-<size>@ALIAS`, `models:/fractal-<size>/VERSION` or a checkpoint's
            folder; by default the candidate.
        preview: Take fewer samples, name the metrics after their count and promote nothing.
        workers: Ray workers that share the work, in the place of the settings'; 0: all there is
            room for.
        wait: Where another process evaluates the same model by the same protocol, wait for it and
            take its result; without it the run fails at once.
        params_file: The settings.
    """
    params = load_params(params_file)
    chosen = params.size(size).with_workers(workers)
    store.connect(params.paths.outputs)
    if model is not None and not model.startswith(REGISTRY_SCHEME):
        return _show(
            params, size, model, _evaluate(params, chosen, Path(model), None, preview, wait)
        )
    version = fetch_registered(size, model)
    run_id = get_or_run_evaluation(params, chosen, version, preview, wait)
    metrics = _show(params, size, f"fractal-{size} version {version.version}", run_id)
    if not preview:
        decision = compare_with_champion(params, chosen, version, metrics)
        outcome = "promoted to champion" if decision.promote else "no promotion"
        say(f"{outcome}: {decision.reason}")
    return metrics


def protocol_of(params: Params, size: str, preview: bool = False) -> Protocol:
    """What the evaluation of a size computes, by which two of them compare. FractalError: see
    `EvaluationInputs.protocol`."""
    chosen = params.size(size)
    inputs = EvaluationInputs(params, chosen.training.dataset)
    return inputs.protocol(chosen.evaluation, sampling=chosen.sampling, preview=preview)


def get_or_run_evaluation(
    params: Params,
    size: Size,
    version: registry.RegisteredCheckpoint,
    preview: bool = False,
    wait: bool = True,
) -> str:
    """The id of the run that evaluated a version under the protocol of its size; evaluates where
    none has. LockHeldError: another process does now, and `wait` is False."""
    protocol = protocol_of(params, size.name, preview).fingerprint
    kept = registry.find_evaluation(size.name, version.version, protocol)
    if kept is not None:
        say(f"fractal-{size.name} version {version.version} is evaluated under this protocol: kept")
        return kept
    return _evaluate(params, size, version.checkpoint, version.version, preview, wait)


def _evaluate(
    params: Params, size: Size, checkpoint: Path, version: str | None, preview: bool, wait: bool
) -> str:
    """The id of the run that evaluates a checkpoint, of a version where it is registered.
    FractalError: the settings or the data set are not the model's. LockHeldError: see above."""
    model = load_checkpoint(checkpoint).build_model(averaged=size.evaluation.weights == "ema")
    name = f"models:/{registry.model_name(size.name)}/{version}" if version else checkpoint.name
    evaluation = prepare_evaluation(
        params, size, model, name=name, version=version, preview=preview
    )
    protocol = evaluation.record.checksum
    with evaluation.lock(wait=wait):
        # Another process may have evaluated it while this one waited for the lock.
        run_id = version and registry.find_evaluation(size.name, version, protocol)
        if not run_id:
            run_id = evaluation_tasks.evaluate_model(evaluation)
            if version:
                registry.tag_version(size.name, version, registry.evaluation_tag(protocol), run_id)
        shutil.rmtree(evaluation.folder, ignore_errors=True)  # the run has its numbers
    return run_id


@task(name="compare-with-champion", cache_policy=NO_CACHE)
def compare_with_champion(
    params: Params, size: Size, candidate: registry.RegisteredCheckpoint, metrics: dict[str, float]
) -> Decision:
    """Promote the candidate where it is better; the decision and its numbers become tags of the
    version and an artifact. A champion of another protocol is evaluated under this one first; what
    serves in another way than it was evaluated is not promoted."""

    def metrics_of(version: str) -> dict[str, float]:
        champion = registry.fetch(size.name, version)
        return runs.read_metrics(get_or_run_evaluation(params, size, champion))

    decision = champions.compare_and_promote(
        size.name,
        candidate.version,
        metrics,
        params.promotion,
        protocol=protocol_of(params, size.name).fingerprint,
        metrics_of=metrics_of,
        objection=registration.serving_difference(size.name, candidate.version, size.serving),
    )
    create_markdown_artifact(
        promotion.as_markdown(size.name, candidate.version, decision),
        key=f"promotion-{size.name}",
        description=f"fractal-{size.name} version {candidate.version} against the champion",
    )
    return decision


def _show(params: Params, size: str, model: str, run_id: str) -> dict[str, float]:
    """Print and publish what an evaluation found; returns its metrics."""
    results = runs.read_results(run_id)
    publish_table(f"evaluation-{size}", results)
    rows, absent = results.set_index("metric"), results["value"].isna()
    print_results(model, rows["value"].dropna(), rows["reason"][absent.values])
    with runs.optional_step("picture of the samples"):
        picture = runs.download(run_id, PICTURE, params.paths.outputs / size)
        say(f"samples: open {os.path.relpath(picture)}")
    say("curves, tables and the registered model: run `make ui`, open http://127.0.0.1:5000")
    return runs.read_metrics(run_id)


def check(
    params: Params, size: str, model: str | None = None, preview: bool = False, **how: object
) -> None:
    """Before anything starts. FractalError: no data set, no reference or another's, no candidate,
    or a damaged one."""
    chosen = params.size(size)
    folder = params.dataset_folder(chosen.training.dataset)
    fit_size(chosen, open_prepared(folder, "validation").manifest)
    protocol_of(params, size, preview)
    store.connect(params.paths.outputs)
    if model is None or model.startswith(REGISTRY_SCHEME):
        verify_checkpoint(fetch_registered(size, model).checkpoint)


def main() -> None:
    run_flow(evaluate_fractal, check=check)


if __name__ == "__main__":
    main()
