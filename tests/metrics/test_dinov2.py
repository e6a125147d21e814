"""DINOv2 features of timm's network with random weights: how a file is loaded, what is refused."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.transforms.functional import to_pil_image

from fractal_model.common.errors import FractalError
from fractal_model.metrics.dinov2 import load_dinov2
from tests.support import random_images


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of weights as timm publishes them, for 518 px."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
        torch.nn.init.normal_(network.pos_embed, std=0.02)
    folder = tmp_path_factory.mktemp("dinov2")
    save_file(network.state_dict(), folder / "w.safetensors")
    torch.save(network.state_dict(), folder / "w.pth")
    return folder


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_features_equal_those_of_timms_own_network_and_transform(weights, name):
    """Timm builds the network from the file, and the transform from the network's name."""
    file, images = weights / name, random_images(3, size=16)
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(
            "vit_small_patch14_dinov2",
            pretrained=True,
            pretrained_cfg_overlay={"file": str(weights / "w.safetensors")},
            num_classes=0,
            img_size=224,
        ).eval()
    config = timm.data.resolve_data_config({"input_size": (3, 224, 224)}, model=network)
    config["crop_pct"] = 1.0
    transform = timm.data.create_transform(**config)
    with torch.no_grad():
        expected = network(torch.stack([transform(to_pil_image(image)) for image in images]))
    features = load_dinov2(file)(images)
    assert features.shape == (3, 384) and features.dtype == torch.float32
    # When Pillow and torch round the scaled values to 8 bits, some differ by one.
    assert ((features - expected).norm() / expected.norm()).item() < 5e-3
    assert features.std() > 0.1


def test_the_extractor_has_the_checksum_and_the_name_of_its_file(weights):
    extractor = load_dinov2(weights / "w.safetensors")
    assert extractor.weights_source == "timm: w.safetensors"
    assert extractor.weights_checksum.startswith("sha256:")
    assert extractor.weights_checksum != load_dinov2(weights / "w.pth").weights_checksum


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.safetensors", b"no weights"),
        ("x.pth", b"no weights"),
        ("x.pth", {"cls_token": torch.zeros(1, 1, 5)}),
        ("x.pth", {"cls_token": torch.zeros(1, 1, 384)}),
        ("x.pth", {"fc": torch.zeros(1)}),
        ("x.pth", [len]),
    ],
)
def test_a_file_without_dinov2_weights_is_refused(tmp_path, name, content):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(
        FractalError, match="expected timm's weights .*dinov2_weights to null"
    ) as raised:
        load_dinov2(file)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FractalError, match="cannot be read .No such file"):
        load_dinov2(tmp_path / "none.pth")
