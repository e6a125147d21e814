"""The protocol, which comparable evaluations share, and the record of how each one was made.

Decided here: a `Protocol` has everything that decides a metric except the model, so that metrics of
equal fingerprints are comparable. A `Record` adds the model, the libraries, the machine and the
date. Batch size and number of workers are in neither, because they change no metric.
"""

from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, ValidationError

import fractal_model
from fractal_model.common.errors import FractalError
from fractal_model.common.fingerprint import fingerprint
from fractal_model.common.hardware import Hardware
from fractal_model.common.strict import PositiveInt, StrictModel
from fractal_model.config.data import IMAGENET_SIDES
from fractal_model.config.evaluation import EvaluationConfig
from fractal_model.config.sampling import GuidanceSchedule, SamplingConfig
from fractal_model.config.weights import Weights
from fractal_model.data.manifest import Manifest, Sha256
from fractal_model.metrics.names import preview_name

if TYPE_CHECKING:  # It loads the feature networks' libraries, which sampling does not need.
    from fractal_model.metrics.reference import Reference

PUBLISHED_SAMPLES = 50_000
"""Number of samples of ADM's protocol (Dhariwal and Nichol, 2021), which published FIDs follow."""
PROTOCOL_VERSION = 1
RECORD_FILE = "protocol.json"
LIBRARIES = ("torch", "torchvision", "torch-fidelity", "timm", "numpy", "scipy")


class ImageSource(StrictModel):
    """How images were sampled from a model. Most images from files have no such description."""

    mask_schedule: Literal["cosine"] = "cosine"
    """How the share of masked sub-patches of a MAR level falls over its iterations."""
    weights: Weights
    """`model` for the trained weights, `ema` for their only exponential moving average, or a moving
    average with its decay, such as `ema-0.999`."""
    sampling: SamplingConfig
    """Sampling settings: guidance, logit scale, filter threshold, iterations, order."""
    guidance_schedule: GuidanceSchedule = Field(
        default_factory=lambda fields: fields["sampling"].guidance_schedule
    )
    """How guidance changes while an image is sampled, as `sampling` says."""
    seed: Annotated[int, Field(ge=0)]
    """Seed of image 0; image i is drawn with `seed + i`."""
    precision: Literal["float32"] = "float32"
    """Number format in which the network computes."""
    likelihood_passes: PositiveInt | None = None
    """Number of mask draws for the likelihood of each image; None if no likelihood is computed."""


class SampleRequest(StrictModel):
    """How the images of a folder were sampled, and from which model."""

    images: ImageSource
    model_checksum: Sha256
    """Checksum of the model's weights."""


class Protocol(StrictModel):
    """Everything that decides the metrics of an evaluation, except the model."""

    version: Annotated[int, Field(ge=1)] = PROTOCOL_VERSION
    """Version of the metrics' code. Raise it for a change of metrics that no other field shows."""
    dataset: str
    dataset_checksum: Sha256
    resolution: PositiveInt
    reference_source: str
    """Origin of the reference: `training images`, or the name of published statistics."""
    reference_checksum: Sha256
    network_checksum: str
    """Checksum of the Inception weights."""
    dinov2_checksum: str | None = None
    """Checksum of the DINOv2 weights; None if FD-DINOv2 is not computed."""
    classes: PositiveInt
    samples_per_class: PositiveInt
    """Number of samples of each class. It is the same for all classes."""
    full_samples: PositiveInt
    """Number of samples of the full protocol: 50,000 for ImageNet and with ADM's statistics, else
    `samples_per_class` of params.yaml times the number of classes."""
    images: ImageSource | None
    """How the samples were drawn; None for images from files without this information."""
    kid_subsets: PositiveInt
    """Number of random subsets over which KID is averaged."""
    kid_subset_size: PositiveInt
    """Number of images in each random subset for KID."""
    fid_resamples: PositiveInt
    """Number of bootstrap resamples for the standard error of FID."""
    neighbours: PositiveInt = 3
    """Number k of nearest neighbours by which precision and recall are defined."""

    @property
    def samples(self) -> int:
        """Number of samples of all classes together."""
        return self.classes * self.samples_per_class

    @property
    def is_preview(self) -> bool:
        """True if the number of samples is not that of the full protocol. The metrics' names then
        contain the number, as in `fid_5k`."""
        return self.samples != self.full_samples

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the protocol. Metrics of equal fingerprints are comparable."""
        return fingerprint(self)

    def label(self, metric: str) -> str:
        """Return the name under which `metric` is reported. It is `metric` itself, except in a
        preview: with 5,000 samples, `fid` is reported as `fid_5k` and `fid_stderr` as
        `fid_5k_stderr`. Metrics that do not depend on samples keep their name."""
        return preview_name(metric, self.samples) if self.is_preview else metric


class Record(StrictModel):
    """What is stored beside every metric: protocol, model, library versions, machine and date."""

    protocol: Protocol
    checksum: Sha256
    """Fingerprint of the protocol."""
    model: str
    """What was evaluated: `models:/fractal-digits/3`, or the name of a folder or file."""
    version: str | None = None
    """Version of the model in the registry; None for a model outside it."""
    model_checksum: Sha256 | None = None
    """Checksum of the weights that were evaluated; None for images from files."""
    libraries: dict[str, str]
    """Versions of the libraries and of this package, by name."""
    hardware: Hardware
    evaluated_at: datetime
    """Time of the evaluation in UTC."""

    @classmethod
    def now(
        cls,
        protocol: Protocol,
        *,
        model: str,
        version: str | None = None,
        model_checksum: str | None = None,
        hardware: Hardware | None = None,
    ) -> Self:
        """Return the record of an evaluation made now. `hardware` is by default this machine's."""
        return cls(
            protocol=protocol,
            checksum=protocol.fingerprint,
            model=model,
            version=version,
            model_checksum=model_checksum,
            libraries=library_versions(),
            hardware=hardware or Hardware.here(),
            evaluated_at=datetime.now(UTC),
        )


def make_protocol(
    settings: EvaluationConfig,
    manifest: Manifest,
    reference: "Reference",
    *,
    inception_checksum: str,
    preview: bool = False,
    sampling: SamplingConfig | None = None,
    dinov2_checksum: str | None = None,
) -> Protocol:
    """Return the protocol of an evaluation with `settings` on the data set of `manifest`. The two
    checksums are those of the Inception and DINOv2 weights in use; `dinov2_checksum` is None if
    FD-DINOv2 is not computed. `sampling` is None for images from files.

    FractalError: the number of samples is not the full protocol's and `preview` is False, or the
    reference belongs to another data set or network.
    """
    reference.require(dataset_checksum=manifest.checksum, weights_checksum=inception_checksum)
    classes = len(manifest.class_names)
    configured = settings.samples_per_class * classes
    published = manifest.dataset in IMAGENET_SIDES or reference.source.startswith("ADM")
    full = PUBLISHED_SAMPLES if published else configured
    if not preview and configured != full:
        raise FractalError(
            f"samples_per_class is {settings.samples_per_class} and makes {configured:,} images of "
            f"{classes:,} classes, but the protocol of {manifest.dataset} has {full:,}: set it to "
            f"{full / classes:g} under evaluation in params.yaml, or ask for a preview"
        )
    source = None
    if sampling is not None:
        source = ImageSource(
            weights=settings.weights,
            sampling=sampling,
            seed=settings.seed,
            likelihood_passes=settings.likelihood_passes,
        )
    return Protocol(
        dataset=manifest.dataset,
        dataset_checksum=manifest.checksum,
        resolution=manifest.resolution,
        reference_source=reference.source,
        reference_checksum=reference.checksum,
        network_checksum=inception_checksum,
        dinov2_checksum=dinov2_checksum,
        classes=classes,
        samples_per_class=settings.preview_per_class if preview else settings.samples_per_class,
        full_samples=full,
        images=source,
        kid_subsets=settings.kid_subsets,
        kid_subset_size=settings.kid_subset_size,
        fid_resamples=settings.fid_resamples,
    )


def read_record(file: Path) -> Record:
    """Read a record from `protocol.json`. FractalError: the file is missing, or another version of
    this package wrote it."""
    try:
        return Record.model_validate_json(file.read_text())
    except FileNotFoundError as error:
        raise FractalError(f"the record {file} is missing: evaluate again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FractalError(
            f"the record {file} was written by another version ({where}: {first['msg']}): "
            f"evaluate again"
        ) from error


def library_versions() -> dict[str, str]:
    """Return the versions of this package and of the libraries that compute metrics, by name."""
    return {"fractal-model": fractal_model.__version__} | {n: installed(n) for n in LIBRARIES}
