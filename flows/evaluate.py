"""Flow `evaluate-fractal`: take a model from the registry, measure it, compare, promote.

As a command: `python -m flows.evaluate --size digits`. A version that was evaluated under the
same protocol is not evaluated again.
"""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_table_artifact

from flows.command import run_flow
from fractal_model import evaluation
from fractal_model.console import print_results, progress_bar, say
from fractal_model.data.prepared import PreparedSplit, open_prepared
from fractal_model.fingerprint import fingerprint
from fractal_model.images import sample_grid, save_png
from fractal_model.metrics.evaluate import MetricResults
from fractal_model.metrics.inception import load_inception
from fractal_model.metrics.reference import load_reference
from fractal_model.model.fractal import FractalModel
from fractal_model.params import DEFAULT_FILE, Params, Size, load_params
from fractal_model.tracking import registry, runs, store
from fractal_model.tracking.promotion import Decision, decide
from fractal_model.training.checkpoint import load_checkpoint

GRID_COLUMNS = 10


@flow(name="evaluate-fractal")
def evaluate_fractal(size: str = "digits", params_file: Path = DEFAULT_FILE) -> dict[str, float]:
    """Evaluate models:/fractal-<size>@candidate; returns its metrics."""
    params = load_params(params_file)
    chosen = params.size(size)
    store.connect(params.paths.outputs)
    candidate = registry.resolve(size)
    train = open_prepared(params.dataset_folder(chosen.training.dataset), "train")
    reference = load_reference(params.reference_file(chosen.training.dataset))
    protocol = fingerprint(
        chosen.sampling, chosen.evaluation, train.manifest.checksum, reference.checksum
    )
    tag = f"{registry.EVALUATION_TAG}.{protocol[:12]}"
    if tag in candidate.tags:
        say(f"fractal-{size} version {candidate.version} is evaluated under this protocol: kept")
        run_id = candidate.tags[tag]
    else:
        run_id = _evaluate(params, chosen, candidate, train, protocol)
        registry.tag_version(size, candidate.version, tag, run_id)
    metrics = mlflow.get_run(run_id).data.metrics
    decision = compare_with_champion(size, candidate.version, tag, metrics)
    _show(params, size, candidate.version, run_id, decision)
    return metrics


def _evaluate(
    params: Params,
    size: Size,
    candidate: registry.RegisteredCheckpoint,
    train: PreparedSplit,
    protocol: str,
) -> str:
    model = load_checkpoint(candidate.checkpoint).build_model()
    settings = {
        "sampling": size.sampling.model_dump(),
        "evaluation": size.evaluation.model_dump(),
        "protocol": protocol,
    }
    with runs.evaluation_run(
        size, train.manifest, candidate.version, settings, params.paths.outputs
    ) as run_id:
        nll = measure_likelihood(params, size, model)
        samples = draw_samples(size, model)
        found = measure_samples(params, size, train, samples)
        runs.log_results(MetricResults(nll | found.values, found.absent))
        grid = sample_grid(samples.images, samples.labels, per_class=GRID_COLUMNS)
        mlflow.log_artifact(str(save_png(grid, _picture(params, size.name))))
    return run_id


@task(name="likelihood")
def measure_likelihood(params: Params, size: Size, model: FractalModel) -> dict[str, float]:
    """Held-out bits per dimension."""
    split = open_prepared(params.dataset_folder(size.training.dataset), "validation")
    with progress_bar("held-out likelihood, images", len(split)) as update:
        return evaluation.held_out_likelihood(model, split, size.evaluation, update)


@task(name="sample", persist_result=False)
def draw_samples(size: Size, model: FractalModel) -> evaluation.Samples:
    """A balanced set."""
    count = size.evaluation.samples_per_class * size.model.num_classes
    with progress_bar("sampling, images", count) as update:
        return evaluation.balanced_samples(model, size.sampling, size.evaluation, update)


@task(name="sample-metrics")
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


@task(name="compare-with-champion")
def compare_with_champion(
    size: str, version: str, protocol_tag: str, metrics: dict[str, float]
) -> Decision:
    """Promote the candidate where it is better; the decision becomes a tag of the version."""
    champion = registry.aliased_version(size, registry.CHAMPION)
    if champion == version:
        return Decision(False, "the candidate is the champion")
    theirs = None
    if champion is not None:
        run_id = registry.version_tags(size, champion).get(protocol_tag)
        theirs = mlflow.get_run(run_id).data.metrics if run_id else {}
    decision = decide(metrics, theirs)
    if decision.promote:
        registry.promote(size, version)
    registry.tag_version(size, version, "fractal.decision", decision.reason)
    return decision


def _show(params: Params, size: str, version: str, run_id: str, decision: Decision) -> None:
    results = pd.DataFrame(mlflow.artifacts.load_dict(f"runs:/{run_id}/results.json")["data"])
    results.columns = ["metric", "value", "reason"]
    picture = _picture(params, size)
    if not picture.exists():
        mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=picture.name, dst_path=str(picture.parent)
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


def _picture(params: Params, size: str) -> Path:
    return params.paths.outputs / size / "samples.png"


def check(params: Params, size: str) -> None:
    """Before anything starts. FractalError: no data set, no reference, or no candidate."""
    dataset = params.size(size).training.dataset
    open_prepared(params.dataset_folder(dataset), "validation")
    load_reference(params.reference_file(dataset))
    store.connect(params.paths.outputs)
    load_checkpoint(registry.resolve(size).checkpoint)


def main() -> None:
    run_flow(evaluate_fractal, check=check)


if __name__ == "__main__":
    main()
