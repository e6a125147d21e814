"""Three evaluations of an untrained model of size `digits`, with three values of guidance."""

from __future__ import annotations

from pathlib import Path

import yaml

from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint
from fractal_model.config.params import Params, load_params
from fractal_model.data.digits import prepare_digits
from fractal_model.evaluation.held_out_likelihood import held_out_likelihood
from fractal_model.evaluation.inputs import EvaluationInputs
from fractal_model.evaluation.measure_likelihood import likelihood_by_level
from fractal_model.evaluation.protocol import Record
from fractal_model.evaluation.sample_metrics import sample_metrics
from fractal_model.evaluation.samples import draw_samples
from fractal_model.generation.pictures import sample_grid
from fractal_model.metrics.inception import load_inception
from fractal_model.metrics.reference import build_reference
from fractal_model.model.weights import weights_checksum
from fractal_model.tracking import registration, registry, runs, store
from fractal_model.tracking.reports import log_report
from tests.support import REPOSITORY, tiny_model

GUIDANCE = (1.0, 2.0, 4.0)
TINY = {"widths": [16, 16, 8], "blocks": [1, 1, 1], "heads": [2, 2, 2], "dropout": 0.0}
REFERENCE_IMAGES = 12


def tiny_params(folder: Path) -> Params:
    """Tiny settings in `folder`, whose data set and reference are prepared."""
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    content["datasets"]["digits"]["validation_images"] = 20
    content["models"]["digits"].update(TINY)
    content["sampling"]["digits"]["iterations"] = [4, 2]
    content["evaluation"]["digits"].update(
        likelihood_passes=1, samples_per_class=1, kid_subset_size=5, kid_subsets=5, fid_resamples=2
    )
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    params = load_params(folder / "params.yaml")
    prepare_digits(params.paths.data / "digits", validation_images=20, seed=0)
    build_reference(
        EvaluationInputs(params, "digits").split("train"),
        load_inception("auto"),
        params.reference_file("digits"),
        images=REFERENCE_IMAGES,
        sample=REFERENCE_IMAGES,
    )
    return params


def evaluate_three(folder: Path) -> tuple[Params, list[str]]:
    """Make three evaluations; return the settings and the ids of the runs in `folder`/outputs."""
    params = tiny_params(folder)
    model = tiny_model("mar", patch_sizes=(8, 2, 1), num_classes=10)
    checkpoint = folder / "checkpoint"
    progress = Progress(size="digits", fingerprint="", position=0, steps=0)
    save_checkpoint(checkpoint, model=model, optimizer={}, progress=progress)
    store.connect(params.paths.outputs)
    size = params.size("digits")
    with runs.import_run(size, checkpoint, "0" * 64, params.paths.outputs) as run_id:
        tags = {"fractal.import_run": run_id}
        registration.register("digits", checkpoint, serving=size.serving, tags=tags)
    return params, [_evaluate(params, model, guidance, folder) for guidance in GUIDANCE]


def _evaluate(params: Params, model, guidance: float, folder: Path) -> str:
    size = params.size("digits")
    sampling = size.sampling.model_copy(update={"guidance": guidance})
    size = size.model_copy(update={"sampling": sampling})
    inputs = EvaluationInputs(params, "digits")
    protocol = inputs.protocol(size.evaluation, sampling=sampling)
    record = Record.now(
        protocol,
        model="models:/fractal-digits/1",
        version="1",
        model_checksum=weights_checksum(model),
    )
    parts = folder / f"parts {guidance}"
    train, validation = inputs.split("train"), inputs.split("validation")
    source = protocol.images
    with runs.evaluation_run(size, train.manifest, record, params.paths.outputs) as run_id:
        held_out = held_out_likelihood(
            model, validation, source, parts, lambda done: None, largest=100
        )
        samples = draw_samples(
            model, protocol, source, inputs.networks, parts, lambda done: None, largest=100
        )
        references = inputs.references()
        metrics = held_out.results | sample_metrics(
            samples, references, load_inception("auto"), protocol, model=model.config
        )
        runs.log_results(
            metrics, train.manifest, registry.logged_model_id("digits", record.version)
        )
        labels = samples.images.labels
        pictures = samples.images.images(range(len(labels)))
        runs.log_picture(sample_grid(pictures, labels, per_class=1), "samples.png")
        log_report(
            record,
            metrics,
            samples,
            train,
            references.inception,
            model.config,
            held_out=held_out,
            level_bits=likelihood_by_level(model, validation, passes=1, seed=0),
        )
    return run_id
