"""`fractal evaluate`: every metric of a model or of a set of samples, and the protocol behind it.

MLflow is needed for a registered model alone; standard output has the result and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fractal_model.cli.options import JsonOption, ParamsOption, given
from fractal_model.common.console import only_result_on_stdout, print_results, progress_bar, say
from fractal_model.common.errors import FractalError
from fractal_model.config.params import DEFAULT_FILE, Params, Size, load_params
from fractal_model.data.manifest import fit_size

if TYPE_CHECKING:
    from fractal_model.evaluation.inputs import EvaluationInputs
    from fractal_model.evaluation.protocol import Protocol, Record
    from fractal_model.evaluation.samples import SeenSamples
    from fractal_model.metrics.image_metrics import MetricResults
    from fractal_model.model.fractal import FractalModel


def evaluate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER_OR_MODEL",
            parser=given,
            help="Samples (a folder of `fractal sample`, or ADM's .npz), a checkpoint or exported "
            "folder, or models:/fractal-digits@champion.",
        ),
    ],
    dataset: Annotated[
        str, typer.Option(parser=given, metavar="NAME", help="The prepared data set to compare to.")
    ],
    size: Annotated[
        str | None,
        typer.Option(help="Whose settings in params.yaml to take; by default the model's own."),
    ] = None,
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Fewer samples; the metrics bear their count: fid_5k."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Ray workers that share the work; 0: all that the cluster has room for. Default: "
            "the size's. The result is the same."
        ),
    ] = None,
    as_json: JsonOption = False,
    params: ParamsOption = DEFAULT_FILE,
) -> None:
    """Measure a model, or samples that are there, by the protocol of params.yaml.

    A model gets everything: likelihood, samples of its own, and their distances from the data set.
    Samples get the distances. A set that is not the protocol's is refused.
    """
    from fractal_model.evaluation.inputs import EvaluationInputs

    settings = load_params(params)
    inputs = EvaluationInputs(settings, dataset)
    with only_result_on_stdout(as_json):
        if _is_model(source):
            found, record = _of_model(source, settings, inputs, size, preview, workers)
        else:
            found, record = _of_samples(Path(source), settings, inputs, size, preview)
    if as_json:
        print(json.dumps(_as_object(found, record), indent=1, allow_nan=False))
        return
    from fractal_model.metrics.image_metrics import results_table

    print_results(
        f"{record.model} on {dataset}, {record.protocol.samples:,} samples", results_table(found)
    )
    say(f"protocol {record.checksum[:12]}, reference: {record.protocol.reference_source}")


def _is_model(source: str) -> bool:
    from fractal_model.checkpoints.checkpoint import CHECKPOINT_ONLY
    from fractal_model.model.pretrained import CONFIG, WEIGHTS
    from fractal_model.tracking.model_source import AVERAGED, REGISTRY_SCHEME

    if source.endswith(AVERAGED):
        raise FractalError(
            f"{source} says which weights: evaluation.<size>.weights in params.yaml does, leave "
            f"out {AVERAGED}"
        )
    names = (CONFIG, WEIGHTS, *CHECKPOINT_ONLY)
    is_folder = any((Path(source) / name).exists() for name in names)
    return source.startswith(REGISTRY_SCHEME) or is_folder


def _of_model(
    source: str,
    settings: Params,
    inputs: EvaluationInputs,
    size: str | None,
    preview: bool,
    workers: int | None,
) -> tuple[MetricResults, Record]:
    from fractal_model.common.locks import only_one
    from fractal_model.evaluation.protocol import Record
    from fractal_model.model.weights import weights_checksum
    from fractal_model.parallel.ray_workers import hardware, worker_count
    from fractal_model.tracking.model_source import REGISTRY_SCHEME

    model, chosen = _model_and_size(source, settings, size)
    fit_size(chosen.model_copy(update={"model": model.config}), inputs.manifest)
    chosen.sampling.level_iterations(model.config)
    protocol = inputs.protocol(chosen.evaluation, sampling=chosen.sampling, preview=preview)
    count = worker_count(chosen.evaluation.workers if workers is None else workers)
    folder = inputs.folder(chosen.name, protocol, model)
    with only_one(folder.with_suffix(".lock")):
        found = _measured(model, inputs, protocol, folder, chosen.evaluation.batch_size, count)
    say(f"the samples are kept in {folder}: remove it when you no longer need them")
    record = Record.now(
        protocol,
        model=source if source.startswith(REGISTRY_SCHEME) else Path(source).name,
        model_checksum=weights_checksum(model),
        hardware=hardware(count),
    )
    return found, record


def _model_and_size(source: str, settings: Params, size: str | None) -> tuple[FractalModel, Size]:
    """With the weights that the size's evaluation asks for."""
    from fractal_model.tracking.model_source import AVERAGED, load_model

    model = load_model(source, settings.paths.outputs)
    chosen = settings.size(size) if size is not None else settings.size_of(model.config)
    if chosen.evaluation.weights == "ema":
        model = load_model(f"{source}{AVERAGED}", settings.paths.outputs)
    return model, chosen


def _measured(
    model: FractalModel,
    inputs: EvaluationInputs,
    protocol: Protocol,
    folder: Path,
    largest: int,
    workers: int,
) -> MetricResults:
    from fractal_model.evaluation.likelihood import held_out_likelihood
    from fractal_model.evaluation.samples import draw_samples
    from fractal_model.parallel.ray_workers import shared_out

    split, source = inputs.split("validation"), protocol.images
    work = {"largest": largest, "map_parts": shared_out(workers, inputs.files)}
    with progress_bar("held-out likelihood, images", 2 * len(split)) as update:
        held_out = held_out_likelihood(model, split, source, folder, update, **work)
    with progress_bar("sampling and features, images", protocol.samples) as update:
        samples = draw_samples(
            model, protocol, source, inputs.networks, folder / "samples", update, **work
        )
    return held_out.results | _sample_metrics(samples, inputs, protocol)


def _of_samples(
    place: Path, settings: Params, inputs: EvaluationInputs, size: str | None, preview: bool
) -> tuple[MetricResults, Record]:
    from fractal_model.common.memory import compute_device
    from fractal_model.evaluation.protocol import Record
    from fractal_model.evaluation.sample_set import (
        open_sample_set,
        per_class_of,
        require_protocol,
        sample_request,
    )
    from fractal_model.evaluation.samples import look_at

    samples = open_sample_set(place)
    chosen = settings.evaluation_of(inputs.dataset, size)
    if preview:
        count = per_class_of(samples, inputs.manifest, place)
        chosen = chosen.model_copy(update={"preview_per_class": count})
    protocol = inputs.protocol(chosen, sampling=None, preview=preview)
    request = sample_request(place)
    if request is not None:
        protocol = protocol.model_copy(update={"images": request.images})
    require_protocol(samples, protocol, place)
    with progress_bar("features, images", protocol.samples) as update:
        seen = look_at(samples, protocol, inputs.networks, compute_device(), update)
    found = _sample_metrics(seen, inputs, protocol)
    checksum = None if request is None else request.model_checksum
    return found, Record.now(protocol, model=place.name, model_checksum=checksum)


def _sample_metrics(
    samples: SeenSamples, inputs: EvaluationInputs, protocol: Protocol
) -> MetricResults:
    from fractal_model.evaluation.sample_metrics import sample_metrics
    from fractal_model.metrics.inception import load_inception

    inception = load_inception(inputs.params.metrics.inception_weights)
    return sample_metrics(samples, inputs.references(), inception, protocol)


def _as_object(found: MetricResults, record: Record) -> dict[str, object]:
    return {
        "metrics": found.values,
        "absent": found.absent,
        "protocol": record.model_dump(mode="json"),
    }
