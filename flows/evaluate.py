"""Flow `evaluate-fractal`: take a model from the registry, measure it, compare, promote.

As a command: `python -m flows.evaluate --size digits`. A version that was evaluated under the
same protocol is not evaluated again.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import mlflow
import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.command import run_flow
from fractal_model import evaluation
from fractal_model.console import print_results, progress_bar, say
from fractal_model.data.manifest import read_manifest
from fractal_model.data.prepared import PreparedSplit, open_prepared
from fractal_model.images import sample_grid
from fractal_model.metrics.evaluate import MetricResults
from fractal_model.metrics.inception import load_inception
from fractal_model.metrics.protocol import Protocol, make_protocol
from fractal_model.metrics.published import file_checksum
from fractal_model.metrics.reference import load_reference
from fractal_model.model.fractal import FractalModel
from fractal_model.params import DEFAULT_FILE, Params, Size, load_params
from fractal_model.tracking import registry, runs, store
from fractal_model.tracking.promotion import Decision, decide
from fractal_model.training.checkpoint import load_checkpoint, verify_checkpoint

GRID_COLUMNS = 10
PICTURE = "samples.png"


@flow(name="evaluate-fractal")
def evaluate_fractal(size: str = "digits", params_file: Path = DEFAULT_FILE) -> dict[str, float]:
    """Evaluate models:/fractal-<size>@candidate; returns its metrics."""
    params = load_params(params_file)
    chosen = params.size(size)
    store.connect(params.paths.outputs)
    protocol = protocol_of(params, size).checksum
    candidate = registry.resolve(size)
    run_id = _evaluated(params, chosen, candidate, protocol)
    metrics = mlflow.get_run(run_id).data.metrics
    decision = compare_with_champion(params, chosen, candidate, metrics, protocol)
    _show(params, size, candidate.version, run_id, decision)
    return metrics


def protocol_of(params: Params, size: str, preview: bool = False) -> Protocol:
    """What the evaluation of a size computes, by which two of them compare. FractalError: no data
    set, no reference or another's, or not the number of samples of the full protocol."""
    chosen = params.size(size)
    dataset = chosen.training.dataset
    weights = params.metrics.dinov2_weights
    return make_protocol(
        chosen.evaluation,
        read_manifest(params.dataset_folder(dataset)),
        load_reference(params.reference_file(dataset)),
        preview=preview,
        sampling=chosen.sampling,
        dinov2_checksum=None if weights is None else f"sha256:{file_checksum(Path(weights))}",
    )


def _evaluated(
    params: Params, size: Size, version: registry.RegisteredCheckpoint, protocol: str
) -> str:
    """The id of the run that evaluated a version under the protocol; evaluates where none has."""
    tag = f"{registry.EVALUATION_TAG}.{protocol[:12]}"
    what = f"fractal-{size.name} version {version.version}"
    if tag in version.tags:
        say(f"{what} is evaluated under this protocol: kept")
        return version.tags[tag]
    run_id = _evaluate(params, size, version, protocol)
    registry.tag_version(size.name, version.version, tag, run_id)
    return run_id


def _evaluate(
    params: Params, size: Size, version: registry.RegisteredCheckpoint, protocol: str
) -> str:
    model = load_checkpoint(version.checkpoint).build_model(
        averaged=size.evaluation.weights == "ema"
    )
    train = open_prepared(params.dataset_folder(size.training.dataset), "train")
    settings = {
        "sampling": size.sampling.model_dump(),
        "evaluation": size.evaluation.model_dump(),
        "protocol": protocol,
    }
    with runs.evaluation_run(
        size, train.manifest, version.version, settings, params.paths.outputs
    ) as run_id:
        nll = measure_likelihood(params, size, model)
        samples = draw_samples(size, model)
        found = measure_samples(params, size, train, samples)
        runs.log_results(MetricResults(nll | found.values, found.absent))
        grid = sample_grid(samples.images, samples.labels, per_class=GRID_COLUMNS)
        runs.log_picture(grid, PICTURE)
        draw_growth(size, model)
    return run_id


@task(name="likelihood", cache_policy=NO_CACHE)
def measure_likelihood(params: Params, size: Size, model: FractalModel) -> dict[str, float]:
    """Held-out bits per dimension."""
    split = open_prepared(params.dataset_folder(size.training.dataset), "validation")
    with progress_bar("held-out likelihood, images", len(split)) as update:
        return evaluation.held_out_likelihood(model, split, size.evaluation, update)


@task(name="sample", cache_policy=NO_CACHE)
def draw_samples(size: Size, model: FractalModel) -> evaluation.Samples:
    """A balanced set."""
    count = size.evaluation.samples_per_class * size.model.num_classes
    with progress_bar("sampling, images", count) as update:
        return evaluation.balanced_samples(model, size.sampling, size.evaluation, update)


@task(name="sample-metrics", cache_policy=NO_CACHE)
def measure_samples(
    params: Params, size: Size, train: PreparedSplit, samples: evaluation.Samples
) -> MetricResults:
    """FID and its relatives against the reference of the data set."""
    reference = load_reference(params.reference_file(size.training.dataset))
    with progress_bar("Inception features, images", len(samples.images)) as update:
        return evaluation.sample_metrics(
            samples,
            train,
            reference,
            load_inception(params.metrics.inception_weights),
            size.evaluation,
            update,
        )


@task(name="growth", cache_policy=NO_CACHE)
def draw_growth(size: Size, model: FractalModel) -> None:
    """The generation of a few images, moving and still, as artifacts."""
    with tempfile.TemporaryDirectory() as scratch:
        for file in evaluation.growth(model, size.sampling, size.evaluation, Path(scratch)):
            mlflow.log_artifact(str(file))


@task(name="compare-with-champion", cache_policy=NO_CACHE)
def compare_with_champion(
    params: Params,
    size: Size,
    candidate: registry.RegisteredCheckpoint,
    metrics: dict[str, float],
    protocol: str,
) -> Decision:
    """Promote the candidate where it is better; the decision becomes a tag of the version. A
    champion of another protocol is evaluated under this one first."""
    champion = registry.aliased_version(size.name, registry.CHAMPION)
    if champion == candidate.version:
        return Decision(False, "the candidate is the champion")
    theirs = None
    if champion is not None:
        registered = registry.resolve(size.name, registry.CHAMPION)
        theirs = mlflow.get_run(_evaluated(params, size, registered, protocol)).data.metrics
    decision = decide(metrics, theirs)
    if decision.promote:
        registry.promote(size.name, candidate.version)
    registry.tag_version(size.name, candidate.version, "fractal.decision", decision.reason)
    return decision


def _show(params: Params, size: str, version: str, run_id: str, decision: Decision) -> None:
    results = pd.DataFrame(mlflow.artifacts.load_dict(f"runs:/{run_id}/results.json")["data"])
    results.columns = ["metric", "value", "reason"]
    folder = params.paths.outputs / size
    picture = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path=PICTURE, dst_path=str(folder)
    )
    create_table_artifact(
        key=f"evaluation-{size}",
        table=results.astype(object).where(results.notna(), "").to_dict("records"),
    )
    print_results(f"fractal-{size} version {version}", results)
    outcome = "promoted to champion" if decision.promote else "no promotion"
    say(f"{outcome}: {decision.reason}")
    say(f"samples: open {os.path.relpath(picture)}")
    say("curves, tables and the registered model: run `make ui`, open http://127.0.0.1:5000")


def check(params: Params, size: str) -> None:
    """Before anything starts. FractalError: no data set, no reference or another's, no candidate,
    or a damaged one."""
    chosen = params.size(size)
    dataset = chosen.training.dataset
    manifest = open_prepared(params.dataset_folder(dataset), "validation").manifest
    chosen.fitted_to(manifest)
    load_reference(params.reference_file(dataset)).require(
        dataset_checksum=manifest.checksum,
        weights_checksum=load_inception(params.metrics.inception_weights).weights_checksum,
    )
    store.connect(params.paths.outputs)
    verify_checkpoint(registry.resolve(size).checkpoint)


def main() -> None:
    run_flow(evaluate_fractal, check=check)


if __name__ == "__main__":
    main()
