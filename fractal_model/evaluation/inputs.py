"""The inputs of an evaluation, at the places that params.yaml names: images, references and
networks. The protocol is made from them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fractal_model.common.devices import compute_device
from fractal_model.common.fingerprint import fingerprint
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
    """Everything that an evaluation on the data set `dataset` reads, at the places in `params`."""

    params: Params
    dataset: str

    @property
    def networks(self) -> FeatureNetworks:
        """Where the weights of Inception and DINOv2 are, as params.yaml says."""
        return FeatureNetworks(self.params.metrics.inception_weights, self._dinov2)

    @property
    def _dinov2(self) -> Path | None:
        weights = self.params.metrics.dinov2_weights
        return None if weights is None else Path(weights)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that workers on other machines need at the same paths: the manifest of the data
        set, unless that is in an object store, and the files of weights that params.yaml names.
        Weights that are downloaded or come with a package are not among them."""
        inception = self.params.metrics.inception_weights
        inception_file = None if inception in ("auto", "download") else Path(inception)
        weights = [file for file in (inception_file, self._dinov2) if file is not None]
        return (*manifest_files(self.params.dataset_folder(self.dataset)), *weights)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the prepared data set. FractalError: the data set is not prepared."""
        return read_manifest(self.params.dataset_folder(self.dataset))

    def split(self, name: str) -> PreparedSplit:
        """Open the split `train` or `validation`. FractalError: see `open_prepared`."""
        return open_prepared(self.params.dataset_folder(self.dataset), name)

    def protocol(
        self, settings: EvaluationConfig, *, sampling: SamplingConfig | None, preview: bool = False
    ) -> Protocol:
        """Build the protocol of an evaluation with `settings`; no image is read. `sampling` is None
        for images from files. With `preview`, the number of samples follows from
        `preview_per_class`. FractalError: the data set, the reference or the weights are missing;
        the reference belongs to another data set or network; or without `preview` the number of
        samples is not the full one."""
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
        """Load the references that samples are compared with. If params.yaml names DINOv2 weights,
        and there is no DINOv2 reference, it is first made from the training images. `progress`
        receives the number of images done. FractalError: a file is missing or damaged."""
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
        """The folder for the stored parts of an evaluation. Each combination of protocol, model and
        library versions has a folder of its own, so that a result never mixes two of them."""
        name = f"{size}-{protocol.fingerprint[:12]}-{computation_fingerprint(model)[:12]}"
        return self.params.paths.outputs / "evaluations" / name


def computation_fingerprint(model: FractalModel) -> str:
    """Return a SHA-256 of a model's configuration, its weights and the versions of the libraries
    that compute metrics. The folder of stored parts has it in its name."""
    return fingerprint(model.config, weights_checksum(model), json.dumps(library_versions()))
