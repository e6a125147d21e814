"""What two evaluations must share for their numbers to be compared, and what one was made with.

Decided here: `Protocol` has all that decides a number apart from the model, so that equal checksums
mean comparable numbers; `Record` adds which model, with which libraries, where and when. Batch size
and number of workers are in neither: they decide nothing.
"""

from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

import fractal_model
from fractal_model.common.errors import FractalError
from fractal_model.common.fingerprint import fingerprint
from fractal_model.common.hardware import Hardware
from fractal_model.common.strict import PositiveInt, StrictModel
from fractal_model.config.data import IMAGENET_SIDES
from fractal_model.config.evaluation import EvaluationConfig
from fractal_model.config.sampling import SamplingConfig
from fractal_model.data.manifest import Manifest, Sha256
from fractal_model.metrics.names import preview_name
from fractal_model.metrics.reference import Reference

PUBLISHED_SAMPLES = 50_000
"""Of ADM's protocol (Dhariwal and Nichol, 2021), which the published numbers follow."""
PROTOCOL_VERSION = 1
RECORD_FILE = "protocol.json"
LIBRARIES = ("torch", "torchvision", "torch-fidelity", "timm", "numpy", "scipy")


class ImageSource(StrictModel):
    """How a model's images were sampled; unknown for most that came as files."""

    guidance_schedule: Literal["linear"] = "linear"
    """How guidance grows while an image is made."""
    mask_schedule: Literal["cosine"] = "cosine"
    """Of the sub-patches of a MAR level that are still masked."""
    weights: Literal["model", "ema"]
    """The weights themselves, or the moving average of them."""
    sampling: SamplingConfig
    """Guidance, logit scale, filter threshold, iterations, order."""
    seed: Annotated[int, Field(ge=0)]
    """Of image 0; image i has i more."""
    precision: Literal["float32"] = "float32"
    """That the network computes in."""
    likelihood_passes: PositiveInt | None = None
    """Mask draws an image, over all of the validation images; None where no likelihood is
    computed."""


class SampleRequest(StrictModel):
    """What a folder of samples says about itself."""

    images: ImageSource
    model_checksum: Sha256
    """Of the weights."""


class Protocol(StrictModel):
    """All that decides the numbers of an evaluation, apart from the model."""

    version: Annotated[int, Field(ge=1)] = PROTOCOL_VERSION
    """Counts changes to how numbers are computed that no other field shows."""
    dataset: str
    dataset_checksum: Sha256
    resolution: PositiveInt
    reference_source: str
    """`training images`, or whose published statistics they are."""
    reference_checksum: Sha256
    network_checksum: str
    """Of the Inception weights."""
    dinov2_checksum: str | None = None
    """Of the DINOv2 weights; None where FD-DINOv2 is not computed."""
    classes: PositiveInt
    samples_per_class: PositiveInt
    """The set is balanced: the same number of each class."""
    full_samples: PositiveInt
    """What the full protocol asks for: 50,000 for ImageNet and wherever the statistics are ADM's,
    else what params.yaml says."""
    images: ImageSource | None
    """None for images that came as files which do not say."""
    kid_subsets: PositiveInt
    kid_subset_size: PositiveInt
    fid_resamples: PositiveInt
    neighbours: PositiveInt = 3
    """k of precision and recall."""

    @property
    def samples(self) -> int:
        """Images in the set."""
        return self.classes * self.samples_per_class

    @property
    def is_preview(self) -> bool:
        """Whether the set is not the full protocol's, so that its metrics bear its count."""
        return self.samples != self.full_samples

    @property
    def fingerprint(self) -> str:
        """SHA-256; equal ones may be compared."""
        return fingerprint(self)

    def label(self, metric: str) -> str:
        """The name to report a metric under: `fid`, but `fid_5k` and `fid_5k_stderr` in a preview
        of 5,000 samples; metrics that no sample decides keep theirs."""
        return preview_name(metric, self.samples) if self.is_preview else metric


class Record(StrictModel):
    """What is kept beside every number: the protocol, the model, the versions, the machine."""

    protocol: Protocol
    checksum: Sha256
    """Of the protocol."""
    model: str
    """`models:/fractal-digits/3`, or the name of the folder or file that was evaluated."""
    version: str | None = None
    """In the registry."""
    model_checksum: Sha256 | None = None
    """Of the weights that were evaluated; None for images that came as files."""
    libraries: dict[str, str]
    """Name to version, our own package's too."""
    hardware: Hardware
    evaluated_at: datetime
    """In UTC."""

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
        """Of an evaluation at this moment, in this process unless `hardware` says otherwise."""
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
    reference: Reference,
    *,
    inception_checksum: str,
    preview: bool = False,
    sampling: SamplingConfig | None = None,
    dinov2_checksum: str | None = None,
) -> Protocol:
    """The protocol that settings ask for on a data set, with the Inception weights that will be
    used; without `sampling`, of images that come as files.

    FractalError: not the number of samples of the full protocol, and no preview was asked for, or
    a reference of another data set or network.
    """
    reference.require(dataset_checksum=manifest.checksum, weights_checksum=inception_checksum)
    classes = len(manifest.class_names)
    configured = settings.samples_per_class * classes
    published = manifest.dataset in IMAGENET_SIDES or reference.source.startswith("ADM")
    full = PUBLISHED_SAMPLES if published else configured
    if not preview and configured != full:
        raise FractalError(
            f"samples_per_class {settings.samples_per_class} makes {configured:,} images of "
            f"{classes:,} classes, the protocol of {manifest.dataset} has {full:,}: set it to "
            f"{full / classes:g} in params.yaml's evaluation, or ask for a preview"
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
    """What `protocol.json` says. FractalError: missing, or written by another version."""
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
    """Name to version of what numbers are computed with, our own package's too."""
    return {"fractal-model": fractal_model.__version__} | {n: installed(n) for n in LIBRARIES}
