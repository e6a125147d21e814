"""DINOv2 through timm's network with random weights: the file's way in, and what is refused."""

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
    """As timm publishes them: for 518 px."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
        torch.nn.init.normal_(network.pos_embed, std=0.02)
    folder = tmp_path_factory.mktemp("dinov2")
    save_file(network.state_dict(), folder / "w.safetensors")
    torch.save(network.state_dict(), folder / "w.pth")
    return folder


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_features_are_those_of_timms_own_transforms(weights, name):
    """The network that timm makes of the file, and the transform that timm makes of its name."""
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
    found = load_dinov2(file)(images)
    assert found.shape == (3, 384) and found.dtype == torch.float32
    # Pillow and torch round the scaled 8-bit values apart by one now and then.
    assert ((found - expected).norm() / expected.norm()).item() < 5e-3
    assert found.std() > 0.1


def test_the_checksum_and_the_source_are_the_files(weights):
    found = load_dinov2(weights / "w.safetensors")
    assert found.weights_source == "timm: w.safetensors"
    assert found.weights_checksum.startswith("sha256:")
    assert found.weights_checksum != load_dinov2(weights / "w.pth").weights_checksum


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
def test_what_is_not_dinov2_is_refused(tmp_path, name, content):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(FractalError, match="expected timm's weights .*dinov2_weights to null") as e:
        load_dinov2(file)
    assert "\n" not in str(e.value)


def test_no_such_file(tmp_path):
    with pytest.raises(FractalError, match="cannot be read .No such file"):
        load_dinov2(tmp_path / "none.pth")
