"""What an evaluation reads from disk, found from params.yaml: images, references, networks, and
the protocol that they make."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fractal_model.common.fingerprint import fingerprint
from fractal_model.common.memory import compute_device
from fractal_model.config.evaluation import EvaluationConfig
from fractal_model.config.params import Params
from fractal_model.config.sampling import SamplingConfig
from fractal_model.data.manifest import Manifest, manifest_files, read_manifest
from fractal_model.data.prepared import PreparedSplit, open_prepared
from fractal_model.evaluation.protocol import Protocol, library_versions, make_protocol
from fractal_model.evaluation.sample_metrics import References
from fractal_model.evaluation.samples import FeatureNetworks
from fractal_model.metrics.dinov2 import dinov2_checksum, load_dinov2
from fractal_model.metrics.inception import inception_checksum
from fractal_model.metrics.reference import Reference, build_reference, load_reference
from fractal_model.model.fractal import FractalModel
from fractal_model.model.weights import weights_checksum


@dataclass(frozen=True)
class EvaluationInputs:
    """One data set's."""

    params: Params
    dataset: str

    @property
    def networks(self) -> FeatureNetworks:
        return FeatureNetworks(self.params.metrics.inception_weights, self._dinov2)

    @property
    def _dinov2(self) -> Path | None:
        weights = self.params.metrics.dinov2_weights
        return None if weights is None else Path(weights)

    @property
    def files(self) -> tuple[Path, ...]:
        """What workers on other machines must see at the same paths: images and weights, those
        that are no download and no package."""
        inception = self.params.metrics.inception_weights
        own = None if inception in ("auto", "download") else Path(inception)
        found = manifest_files(self.params.dataset_folder(self.dataset))
        return (*found, *(file for file in (own, self._dinov2) if file is not None))

    @property
    def manifest(self) -> Manifest:
        """FractalError: there is no such data set."""
        return read_manifest(self.params.dataset_folder(self.dataset))

    def split(self, name: str) -> PreparedSplit:
        """FractalError: see `open_prepared`."""
        return open_prepared(self.params.dataset_folder(self.dataset), name)

    def protocol(
        self, settings: EvaluationConfig, *, sampling: SamplingConfig | None, preview: bool = False
    ) -> Protocol:
        """Reads no images. FractalError: no data set, no reference or one of another data set or
        network, no Inception weights, no DINOv2 weights where they are named, or not the number of
        samples of the full protocol."""
        return make_protocol(
            settings,
            self.manifest,
            self._inception_reference(),
            inception_checksum=inception_checksum(self.params.metrics.inception_weights),
            preview=preview,
            sampling=sampling,
            dinov2_checksum=None if self._dinov2 is None else dinov2_checksum(self._dinov2),
        )

    def references(self, progress: Callable[[int], None] | None = None) -> References:
        """Those of DINOv2 are extracted where they are missing and there are weights, of the same
        training images as Inception's, so that both distances tell of one set."""
        train, dinov2 = self.split("train"), None
        if self._dinov2 is not None:
            dinov2 = build_reference(
                train,
                load_dinov2(self._dinov2, compute_device()),
                self.params.dinov2_reference_file(self.dataset),
                images=self.params.metrics.statistics_images.get(self.dataset, len(train)),
                sample=self.params.metrics.feature_sample,
                progress=progress,
            )
        return References(train, self._inception_reference(), dinov2)

    def _inception_reference(self) -> Reference:
        return load_reference(self.params.reference_file(self.dataset))

    def folder(self, size: str, protocol: Protocol, model: FractalModel) -> Path:
        """Where the parts of an evaluation are kept: one for each protocol, model and version of
        the libraries, so that its numbers are all made with what the record names."""
        name = f"{size}-{protocol.fingerprint[:12]}-{computation_fingerprint(model)[:12]}"
        return self.params.paths.outputs / "evaluations" / name


def computation_fingerprint(model: FractalModel) -> str:
    """SHA-256 of a model and of the versions of the libraries that its numbers are computed with:
    an upgrade must not mix old numbers with new ones."""
    return fingerprint(model.config, weights_checksum(model), json.dumps(library_versions()))
