"""An evaluation from its settings to its metrics; the flow and the command line both use it.

Decided here: `prepare_evaluation` checks everything before anything is computed. The metrics come
in three stages: likelihood, samples with features, metrics of the samples. Each evaluation has its
own folder, where its parts are stored and from which a stopped evaluation continues.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fractal_model.common.console import progress_bar, say
from fractal_model.common.locks import hold_lock, wait_for_lock
from fractal_model.config.model import ModelConfig
from fractal_model.config.params import Params, Size
from fractal_model.data.manifest import fit_size
from fractal_model.evaluation.held_out_likelihood import HeldOutLikelihood, held_out_likelihood
from fractal_model.evaluation.inputs import EvaluationInputs
from fractal_model.evaluation.protocol import ImageSource, Protocol, Record
from fractal_model.evaluation.sample_metrics import sample_metrics
from fractal_model.evaluation.samples import SamplesWithFeatures, draw_samples
from fractal_model.metrics.image_metrics import MetricResults
from fractal_model.metrics.inception import load_inception
from fractal_model.model.fractal import FractalModel
from fractal_model.model.weights import weights_checksum
from fractal_model.parallel.split import hardware, split_over_workers, worker_count


@dataclass(frozen=True)
class PreparedEvaluation:
    """A checked evaluation of one model: its inputs, its record and the folder for its parts."""

    inputs: EvaluationInputs
    size: Size
    model: FractalModel
    record: Record
    folder: Path

    @property
    def source(self) -> ImageSource:
        """How the samples are drawn from the model. Only an evaluation of images from files can
        lack this, and such an evaluation is never a `PreparedEvaluation`."""
        source = self.record.protocol.images
        assert source is not None
        return source

    def lock(self, *, wait: bool = True) -> AbstractContextManager[None]:
        """Lock `folder`, so that only one process at a time computes into it. With `wait`, wait
        while another process holds the lock. LockHeldError: it is held and `wait` is False."""
        file = self.folder.with_suffix(".lock")
        if not wait:
            return hold_lock(file)
        return wait_for_lock(
            file,
            lambda: say(
                f"waiting for another process that evaluates {self.record.model} by the same "
                f"protocol; its lock is {file}"
            ),
        )

    def measure_likelihood(self) -> HeldOutLikelihood:
        """Measure the bits per dimension of the validation images, without and with their
        classes."""
        split = self.inputs.split("validation")
        with progress_bar(
            "held-out likelihood, images with and without class", 2 * len(split), images=True
        ) as update:
            return held_out_likelihood(
                self.model, split, self.source, self.folder, update, **self._division_of_work()
            )

    def draw_samples(self) -> SamplesWithFeatures:
        """Draw the same number of samples of each class, and extract their features."""
        protocol = self.record.protocol
        with progress_bar("sampling and features, images", protocol.samples, images=True) as update:
            return draw_samples(
                self.model,
                protocol,
                self.source,
                self.inputs.networks,
                self.folder / "samples",
                update,
                **self._division_of_work(),
            )

    def measure_samples(self, samples: SamplesWithFeatures) -> MetricResults:
        """Measure FID and the other sample metrics against the reference of the data set."""
        return measure_samples(self.inputs, self.record.protocol, samples, model=self.model.config)

    def _division_of_work(self) -> dict[str, Any]:
        settings = self.size.evaluation
        return {
            "largest": settings.batch_size,
            "map_parts": split_over_workers(settings.workers, self.inputs.files),
        }


def prepare_evaluation(
    params: Params,
    size: Size,
    model: FractalModel,
    *,
    name: str,
    version: str | None = None,
    dataset: str | None = None,
    preview: bool = False,
    workers: int | None = None,
) -> PreparedEvaluation:
    """Check that a model can be evaluated with the settings of its size, and return the evaluation.

    Args:
        name: Name of the model in the record.
        version: Version in the registry; None for a model outside it.
        dataset: Data set to evaluate on; by default the one that the size is trained on.
        preview: Draw fewer samples; the names of the metrics then contain the number of samples.
        workers: Number of workers; 0 for as many as have room; by default as `size` says.

    FractalError: the settings, the data set or the reference do not fit the model.
    """
    inputs = EvaluationInputs(params, dataset or size.training.dataset)
    fit_size(size.model_copy(update={"model": model.config}), inputs.manifest)
    size.sampling.level_iterations(model.config)
    protocol = inputs.protocol(size.evaluation, sampling=size.sampling, preview=preview)
    count = worker_count(size.evaluation.workers if workers is None else workers)
    record = Record.now(
        protocol,
        model=name,
        version=version,
        model_checksum=weights_checksum(model),
        hardware=hardware(count),
    )
    return PreparedEvaluation(
        inputs, size.with_workers(count), model, record, inputs.folder(size.name, protocol, model)
    )


def measure_samples(
    inputs: EvaluationInputs,
    protocol: Protocol,
    samples: SamplesWithFeatures,
    *,
    model: ModelConfig | None = None,
) -> MetricResults:
    """Measure all metrics of a set of samples. `model` is the configuration of the model that drew
    the samples, None for images from files. FractalError: see `sample_metrics`."""
    # A progress bar only for the DINOv2 reference, which may have to be extracted first.
    needs_bar = inputs.networks.dinov2 is not None
    with progress_bar("DINOv2's reference, images", None) if needs_bar else nullcontext() as update:
        references = inputs.references(update)
    inception = load_inception(inputs.params.metrics.inception_weights)
    return sample_metrics(samples, references, inception, protocol, model=model)
