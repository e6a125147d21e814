"""Flow `evaluate-fractal`: measure a model by one protocol, promote it if it beats the champion.

As a command: `python -m flows.evaluate --size digits`. A version that was evaluated under the same
protocol is not evaluated again. Samples are stored until the evaluation ends, so that a stopped
evaluation draws only the missing images.
"""

import os
import shutil
from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from fractal_model.checkpoints.checkpoint import (
    load_checkpoint,
    require_weights,
    verify_checkpoint,
)
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
from fractal_model.sampling.guide import pin_guide
from fractal_model.tracking import champions, registration, registry, runs, store
from fractal_model.tracking.model_source import (
    REGISTRY_SCHEME,
    attach_guide,
    fetch_registered,
    read_guide,
    split_weights,
)
from fractal_model.tracking.result_files import read_model_file, write_evaluation_file

from . import evaluation_tasks
from .command import flow_command, run_command
from .evaluation_tasks import publish_table
from .failures import report_failure
from .run_names import name_run


@flow(name="evaluate-fractal", flow_run_name=name_run("evaluate"))
@report_failure
def evaluate_fractal(
    size: str = "digits",
    model: str | None = None,
    preview: bool = False,
    workers: NotNegativeInt | None = None,
    wait: bool = True,
    params_file: Path = DEFAULT_FILE,
    set: list[str] | None = None,
) -> dict[str, float]:
    """Evaluate a model of a size; return the metrics.

    After a full evaluation, a registered version that is better than the champion is promoted.

    Args:
        size: Name under `models` in params.yaml, such as mar-l.
        model: Model to evaluate, as `models:/fractal-<size>@ALIAS`,
            `models:/fractal-<size>/VERSION`, the file model.json that a training has written, or
            a checkpoint's folder; by default the candidate.
            With #ema or #ema-0.999 at its end, this moving average is evaluated, and nothing is
            promoted unless params.yaml names the same weights.
        preview: Draw fewer samples, add their count to the metrics' names, and promote nothing.
        workers: Number of Ray workers that share the work, or 0 for as many as the cluster has
            room for; by default the number in params.yaml.
        wait: If another process evaluates the same model by the same protocol, wait for its
            result; if this is off, the run fails at once.
        params_file: Path of the settings file.
        set: Settings that replace those of the file, such as training.digits.epochs=5.
    """
    source, weights = split_weights(model)
    usual = load_params(params_file, set)
    params = usual.with_weights(size, weights)
    settings = params.size(size).with_workers(workers)
    store.connect(params.paths.outputs)
    source = read_model_file(source)
    if source is not None and not source.startswith(REGISTRY_SCHEME):
        run_id = _evaluate(params, settings, Path(source), None, preview, wait)
        return _publish_results(params, size, source, run_id, preview)
    version = fetch_registered(size, source)
    run_id = get_or_run_evaluation(params, settings, version, preview, wait)
    name = f"fractal-{size} version {version.version}"
    metrics = _publish_results(params, size, name, run_id, preview)
    if not preview and weights in (None, usual.size(size).evaluation.weights):
        decision = compare_with_champion(params, settings, version, metrics)
        outcome = "promoted to champion" if decision.promote else "no promotion"
        say(f"{outcome}: {decision.reason}")
    return metrics


def protocol_of(params: Params, size: str, preview: bool = False) -> Protocol:
    """Protocol by which a size is evaluated; only numbers of equal protocols are compared.
    FractalError: the data set, reference, feature weights or guide are missing or do not match."""
    settings = params.size(size)
    inputs = EvaluationInputs(params, settings.training.dataset)
    guide = read_guide(settings.sampling.guide, settings.model, params.paths.outputs)
    sampling = pin_guide(settings.sampling, guide)
    return inputs.protocol(settings.evaluation, sampling=sampling, preview=preview)


def get_or_run_evaluation(
    params: Params,
    size: Size,
    version: registry.RegisteredCheckpoint,
    preview: bool = False,
    wait: bool = True,
) -> str:
    """Evaluate a version by the size's protocol, unless a run has done it, and return the id of the
    run. LockHeldError: another process evaluates the version, and `wait` is False."""
    protocol = protocol_of(params, size.name, preview).fingerprint
    run_id = registry.find_evaluation(size.name, version.version, protocol)
    if run_id is not None:
        say(f"fractal-{size.name} version {version.version} has this evaluation: it is reused")
        return run_id
    return _evaluate(params, size, version.checkpoint, version.version, preview, wait)


def _evaluate(
    params: Params, size: Size, checkpoint: Path, version: str | None, preview: bool, wait: bool
) -> str:
    """Evaluate a checkpoint and return the run's id. `version` is the checkpoint's version in the
    registry, or None. FractalError: the settings or the data set do not fit the checkpoint.
    LockHeldError: another process evaluates it, and `wait` is False."""
    model = load_checkpoint(checkpoint).build_model(size.evaluation.weights)
    sampling = attach_guide(model, size.sampling, params.paths.outputs)
    size = size.model_copy(update={"sampling": sampling})
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
        shutil.rmtree(evaluation.folder, ignore_errors=True)  # The run has all its numbers.
    return run_id


@task(name="compare-with-champion", cache_policy=NO_CACHE)
def compare_with_champion(
    params: Params, size: Size, candidate: registry.RegisteredCheckpoint, metrics: dict[str, float]
) -> Decision:
    """Promote the candidate if it beats the champion. Log the decision as tags of the version and
    as a Prefect artifact. A champion without numbers under this protocol is evaluated first. If a
    candidate was evaluated with other settings than it is served with, it is not promoted."""

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


def _publish_results(
    params: Params, size: str, model: str, run_id: str, preview: bool
) -> dict[str, float]:
    """Print the results of the evaluation `run_id` under the heading `model`, show them on
    Prefect's pages, and return the metrics."""
    results = runs.read_results(run_id)
    publish_table(f"evaluation-{size}", results)
    rows, absent = results.set_index("metric"), results["value"].isna()
    print_results(model, rows["value"].dropna(), rows["reason"][absent.values])
    # A preview keeps its hands off the files that DVC tracks.
    folder = params.paths.outputs / size / ("preview" if preview else "")
    metrics = runs.read_metrics(run_id)
    with runs.optional_step("file of the metrics"):
        write_evaluation_file(metrics, folder)
    with runs.optional_step("picture of the samples"):
        picture = runs.download(run_id, runs.SAMPLES_PICTURE, folder)
        say(f"samples: open {os.path.relpath(picture)}")
    say("curves, tables and the registered model: run `make ui`, open http://127.0.0.1:5000")
    return metrics


def check(
    params: Params, size: str, model: str | None = None, preview: bool = False, **others: object
) -> None:
    """Check the parameters before the flow starts. FractalError: the data set, its reference or the
    registered model is missing or damaged, or does not fit the size."""
    source, weights = split_weights(model)
    params = params.with_weights(size, weights)
    settings = params.size(size)
    folder = params.dataset_folder(settings.training.dataset)
    fit_size(settings, open_prepared(folder, "validation").manifest)
    protocol_of(params, size, preview)
    store.connect(params.paths.outputs)
    source = read_model_file(source)
    if source is None or source.startswith(REGISTRY_SCHEME):
        checkpoint = fetch_registered(size, source).checkpoint
        verify_checkpoint(checkpoint)
        require_weights(checkpoint, settings.evaluation.weights)


command = flow_command(evaluate_fractal, check=check, key="metrics")


def main() -> None:
    run_command(command)


if __name__ == "__main__":
    main()
