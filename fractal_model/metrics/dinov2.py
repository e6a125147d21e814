"""DINOv2 features, for a Fréchet distance that is closer to human judgement than Inception's.

Decided here: the network is timm's, and the user gives a file of its weights. Their width tells
which network to build. Images are scaled to 224 px with the bicubic filter. The features of an
image are the class token after the last norm.

Source: Stein et al. 2023, "Exposing flaws of generative model evaluation metrics", section 4.
Shapes: B images of H × W; D features. The large network, which the paper uses, has D = 1024.
"""

from pathlib import Path
from pickle import UnpicklingError

import timm
import torch
from safetensors import SafetensorError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import sha256

_FORMAT_ERRORS = (SafetensorError, UnpicklingError)
SIDE = 224
"""Side in pixels of the images that the network gets."""
NAMES = {
    384: "vit_small_patch14_dinov2",
    768: "vit_base_patch14_dinov2",
    1024: "vit_large_patch14_dinov2",
    1536: "vit_giant_patch14_dinov2",
}
"""Maps the width D of the features to timm's name of the network that has this width."""
NO_WEIGHTS = (
    "no DINOv2 weights were given: set metrics.dinov2_weights in params.yaml to the file of timm's "
    "vit_large_patch14_dinov2.lvd142m"
)


class DINOv2Extractor:
    """Extractor of DINOv2 features, made by `load_dinov2`."""

    FEATURES_VERSION = 1
    """Version of the feature extraction. Raise it when the code gives other features for the same
    images. All references are then made again."""

    def __init__(self, network: VisionTransformer, file: Path, checksum: str) -> None:
        self._network = network
        self.weights_source = f"timm: {file.name}"
        self.weights_checksum = checksum
        """Checksum of the weights file, `sha256:…`."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Extract the features of images, uint8 (B, 3, H, W). Return float32 (B, D) on the
        network's device."""
        device = next(self._network.parameters()).device
        size = [SIDE, SIDE]
        bicubic = transforms.InterpolationMode.BICUBIC
        scaled = transforms.resize(images.to(device), size, interpolation=bicubic, antialias=True)
        values = transforms.to_dtype(scaled, torch.float32, scale=True)
        values = transforms.normalize(values, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        features: Tensor = self._network(values)
        return features


def dinov2_checksum(file: Path) -> str:
    """Return the checksum of a weights file in the form that a protocol stores, `sha256:…`.
    FractalError: the file is missing or not readable."""
    try:
        return f"sha256:{sha256(file)}"
    except OSError as error:
        raise FractalError(
            f"{file} cannot be read ({error.strerror}): make it readable, or give another file"
        ) from error


def load_dinov2(file: Path, device: torch.device | str = "cpu") -> DINOv2Extractor:
    """Load the network with the weights in a safetensors or torch file. Only tensors are read, no
    other Python object. FractalError: the file is missing or damaged, or holds other weights."""
    checksum = dinov2_checksum(file)
    try:
        state = load_state_dict(str(file))
        width = state["cls_token"].shape[-1]
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(NAMES[width], num_classes=0, img_size=SIDE)
        assert isinstance(network, VisionTransformer)
        network.load_state_dict(checkpoint_filter_fn(state, network))
    except (RuntimeError, KeyError, AttributeError, TypeError, EOFError, *_FORMAT_ERRORS) as error:
        raise FractalError(
            f"DINOv2 weights {file}: found something else ({one_line(error)[:200]}), expected "
            f"timm's weights of {', '.join(NAMES.values())}; download them again, or set "
            f"metrics.dinov2_weights to null"
        ) from error
    return DINOv2Extractor(network.eval().to(device), file, checksum)
