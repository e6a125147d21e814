"""`fractal evaluate`: measure all metrics of a model or of existing samples, and show the protocol.

Decided here: --dataset only measures, and then only a registered model needs MLflow. Without it the
command runs the flow, whose results are recorded and may promote a version.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fractal_model.cli.options import ParamsOption, parse_text
from fractal_model.common.console import print_results, progress_bar, say
from fractal_model.common.errors import FractalError
from fractal_model.common.installation import import_flow
from fractal_model.config.params import Params
from fractal_model.config.params_source import DEFAULT_SOURCE, ParamsSource
from fractal_model.config.weights import MODEL

if TYPE_CHECKING:
    from fractal_model.evaluation.protocol import Record
    from fractal_model.metrics.image_metrics import MetricResults


def evaluate(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="FOLDER_OR_MODEL",
            parser=parse_text,
            help="Samples (a folder of `fractal sample` or ADM's .npz) or a model (a checkpoint or "
            "exported folder, or models:/fractal-digits@champion; with #ema or #ema-0.999 at its "
            "end, the moving average of its weights). Default: the candidate of --size.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            parser=parse_text,
            metavar="NAME",
            help="Only measure, and compare with this data set. Nothing is registered or promoted.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="With --dataset: use the settings of this size; default: the model's size. "
            "Without: evaluate a model of this size."
        ),
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Use fewer samples, for metrics such as fid_5k.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Number of workers; 0: as many as fit. Default: the size's.")
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(help="Wait if another process evaluates the same model; otherwise fail."),
    ] = True,
    params: ParamsOption = DEFAULT_SOURCE,
) -> dict[str, object]:
    """Measure a model, or existing samples, by the protocol in params.yaml.

    With --size alone this evaluates a model of the size, by default the registered candidate: it
    logs metrics, pictures and a report to MLflow, and promotes a version that beats the champion.

    With --dataset it only measures and prints. For a model this measures the likelihood, draws
    samples and compares them with the data set. Existing samples are only compared; their number
    and classes must be those of the protocol.
    """
    if dataset is None:
        if size is None:
            raise FractalError(
                "neither --size nor --dataset is given: name the size whose model to evaluate, or "
                "the data set to compare a model or samples with"
            )
        return _run_flow(params, size, source, preview, workers, wait)
    if source is None:
        raise FractalError(
            f"--dataset {dataset} is given without a model or samples: name them first, or give "
            f"--size alone to evaluate the size's candidate"
        )
    settings = params.load()
    if _is_model(source):
        results, record = _evaluate_model(source, settings, dataset, size, preview, workers, wait)
    else:
        results, record = _evaluate_samples(Path(source), settings, dataset, size, preview)
    title = f"{record.model} on {dataset}, {record.protocol.samples:,} samples"
    print_results(title, results.values, results.absent)
    say(f"protocol {record.checksum[:12]}, reference: {record.protocol.reference_source}")
    protocol = record.model_dump(mode="json")
    return {"metrics": results.values, "absent": results.absent, "protocol": protocol}


def _run_flow(
    params: ParamsSource,
    size: str,
    model: str | None,
    preview: bool,
    workers: int | None,
    wait: bool,
) -> dict[str, object]:
    """Run the flow that `prefect deployment run evaluate-fractal/SIZE` runs, and return the
    metrics."""
    return import_flow("evaluate").command(
        size=size,
        model=model,
        preview=preview,
        workers=workers,
        wait=wait,
        params_file=params.file,
        set=list(params.overrides) or None,
    )


def _is_model(source: str) -> bool:
    from fractal_model.checkpoints.checkpoint import CHECKPOINT_ONLY
    from fractal_model.model.pretrained import CONFIG, WEIGHTS
    from fractal_model.tracking.model_source import REGISTRY_SCHEME, split_weights

    place, weights = split_weights(source)
    if weights is not None or place.startswith(REGISTRY_SCHEME):
        return True
    return any(any(Path(place).glob(name)) for name in (CONFIG, WEIGHTS, *CHECKPOINT_ONLY))


def _evaluate_model(
    source: str,
    params: Params,
    dataset: str,
    size: str | None,
    preview: bool,
    workers: int | None,
    wait: bool,
) -> tuple[MetricResults, Record]:
    from fractal_model.evaluation.prepare_evaluation import prepare_evaluation
    from fractal_model.tracking.model_source import (
        REGISTRY_SCHEME,
        attach_guide,
        load_model,
        select_weights,
        split_weights,
    )

    place, weights = split_weights(source)
    model = load_model(source, params.paths.outputs)
    settings = params.size(size) if size is not None else params.find_size(model.config)
    settings = params.with_weights(settings.name, weights).size(settings.name)
    selected = settings.evaluation.weights
    if selected != (model.serving.weights if model.serving is not None else weights or MODEL):
        model = load_model(select_weights(place, selected), params.paths.outputs)
    sampling = attach_guide(model, settings.sampling, params.paths.outputs)
    settings = settings.model_copy(update={"sampling": sampling})
    evaluation = prepare_evaluation(
        params,
        settings,
        model,
        name=place if place.startswith(REGISTRY_SCHEME) else Path(place).name,
        dataset=dataset,
        preview=preview,
        workers=workers,
    )
    with evaluation.lock(wait=wait):
        held_out = evaluation.measure_likelihood()
        results = held_out.results | evaluation.measure_samples(evaluation.draw_samples())
    say(f"the samples stay in {evaluation.folder}: remove it when you no longer need them")
    return results, evaluation.record


def _evaluate_samples(
    place: Path, params: Params, dataset: str, size: str | None, preview: bool
) -> tuple[MetricResults, Record]:
    from fractal_model.common.devices import compute_device
    from fractal_model.evaluation.inputs import EvaluationInputs
    from fractal_model.evaluation.prepare_evaluation import measure_samples
    from fractal_model.evaluation.protocol import Record
    from fractal_model.evaluation.sample_set import (
        open_sample_set,
        read_sample_request,
        require_balance,
        require_protocol,
    )
    from fractal_model.evaluation.samples import extract_sample_features

    inputs = EvaluationInputs(params, dataset)
    samples = open_sample_set(place)
    settings = params.find_evaluation(dataset, size)
    if preview:
        count = require_balance(samples.labels, len(inputs.manifest.class_names), place)
        settings = settings.model_copy(update={"preview_per_class": count})
    protocol = inputs.protocol(settings, sampling=None, preview=preview)
    request = read_sample_request(place)
    if request is not None:
        protocol = protocol.model_copy(update={"images": request.images})
    require_protocol(samples, protocol, place)
    with progress_bar("features, images", protocol.samples, images=True) as update:
        seen = extract_sample_features(samples, protocol, inputs.networks, compute_device(), update)
    results = measure_samples(inputs, protocol, seen)
    checksum = None if request is None else request.model_checksum
    return results, Record.now(protocol, model=place.name, model_checksum=checksum)
