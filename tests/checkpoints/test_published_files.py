"""Downloads of published checkpoints from a server on this machine. The authors' server cannot be
reached by tests: that its addresses answer is not tested."""

from __future__ import annotations

import io
import multiprocessing
import threading

import huggingface_hub.constants
import pytest
import torch

from fractal_model.checkpoints import published_files
from fractal_model.checkpoints.published_files import (
    ADDRESSES,
    MIRROR_VARIABLE,
    download,
    expected_bytes,
    find_cached,
)
from fractal_model.common.errors import FractalError
from fractal_model.common.files import CACHE_VARIABLE
from fractal_model.config.params import load_params
from fractal_model.model.fractal import FractalModel
from tests.support import REPOSITORY
from tests.support.file_server import serving

SIZE = load_params(REPOSITORY / "params.yaml").size("digits")
MIB_OF_SCRIPT = {"ar-64": 1688, "mar-64": 1650, "mar-b": 712, "mar-l": 1669, "mar-h": 3243}
"""Length of each file in units of 2^20 bytes, as the authors' download script counts them."""


@pytest.fixture(scope="module")
def content() -> bytes:
    weights = FractalModel(SIZE.model).state_dict()
    file = io.BytesIO()
    torch.save({"model": weights}, file)
    return file.getvalue()


@pytest.fixture
def server(content):
    with serving(content) as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder in which the cached file of `SIZE` belongs."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    monkeypatch.setattr(published_files, "_WAITS", (0.0, 0.0))
    return tmp_path / "published"


def _download(server, progress=lambda done: None):
    return download(SIZE, server.address, progress)


def _refusal(server) -> str:
    with pytest.raises(FractalError) as raised:
        _download(server)
    assert "\n" not in str(raised.value)
    assert find_cached(SIZE) is None
    return str(raised.value)


def test_a_whole_file_is_downloaded_once(server, cache, content):
    assert find_cached(SIZE) is None
    seen = []
    assert _download(server, seen.append) == cache / "digits.pth" == find_cached(SIZE)
    assert (cache / "digits.pth").read_bytes() == content
    assert seen[-1] == len(content)
    assert seen == sorted(seen)
    assert _download(server) == cache / "digits.pth"
    assert server.requests == [("/digits.pth", None)]
    assert not (cache / "digits.pth.part").exists()


def test_a_broken_connection_is_continued_where_it_broke(server, content):
    server.breaks = [1_000_000, 0, 500_000]
    assert _download(server).read_bytes() == content
    ranges = [wanted for _, wanted in server.requests]
    assert ranges == [None, "bytes=1000000-", "bytes=1000000-", "bytes=1500000-"]


def test_a_later_run_continues_the_part(server, cache, content):
    server.breaks = [1_000_000, 0, 0, 0]
    message = _refusal(server)
    assert "stopped after 1,000,000 bytes" in message
    assert "run the same command again to continue" in message
    assert (cache / "digits.pth.part").stat().st_size == 1_000_000
    server.requests.clear()
    assert _download(server).read_bytes() == content
    assert server.requests == [("/digits.pth", "bytes=1000000-")]


def test_a_part_that_only_lacks_its_name_is_kept(server, cache, content):
    cache.mkdir()
    (cache / "digits.pth.part").write_bytes(content)
    assert _download(server).read_bytes() == content
    assert server.requests == [("/digits.pth", f"bytes={len(content)}-")]


def test_a_part_longer_than_the_file_is_replaced(server, cache, content):
    cache.mkdir()
    (cache / "digits.pth.part").write_bytes(bytes(len(content) + 1))
    assert _download(server).read_bytes() == content


def test_a_server_without_ranges_starts_again(server, content):
    server.has_ranges, server.breaks = False, [1_000_000]
    assert _download(server).read_bytes() == content
    assert len(server.requests) == 2


def test_a_server_without_ranges_that_always_breaks_is_given_up(server):
    server.has_ranges, server.breaks = False, [1_000_000] * 100
    assert "stopped after 1,000,000 bytes" in _refusal(server)
    assert len(server.requests) == 4


def test_a_server_that_does_not_tell_the_length(server, content):
    server.has_length = False
    assert _download(server).read_bytes() == content


@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize("length", [100_000, 20_000_000])
def test_a_file_of_another_length_is_refused(server, cache, content, length, has_length):
    server.content, server.has_length = (content * 6)[:length], has_length
    message = _refusal(server)
    least, most = expected_bytes(SIZE)
    assert f"expected {least:,} to {most:,} for this size in params.yaml" in message
    assert not (cache / "digits.pth.part").exists()


def test_a_web_page_is_refused(server, cache):
    server.content, server.content_type = b"<html>Sign in</html>", "text/html; charset=utf-8"
    assert "/digits.pth is a web page, not a checkpoint" in _refusal(server)
    assert not (cache / "digits.pth.part").exists()


def test_a_web_page_of_the_right_length_is_refused(server, cache, content):
    server.content = b"<html>".ljust(len(content))
    assert "is a web page, not a checkpoint" in _refusal(server)
    assert not (cache / "digits.pth.part").exists()


def test_a_missing_file_is_refused_at_once(server):
    server.status = 404
    message = _refusal(server)
    assert "is refused by the server: 404 Not Found" in message
    assert "import that file, or name a mirror" in message
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server):
    server.status = 503
    assert "the server answers 503" in _refusal(server)
    assert len(server.requests) == 3


def test_a_server_that_is_down_is_named():
    with pytest.raises(FractalError, match=r"http://127.0.0.1:9/digits.pth stopped after 0 bytes"):
        download(SIZE, "http://127.0.0.1:9", lambda done: None)


@pytest.mark.parametrize(
    "mirror", ["ftp://example.org", "models", "http://", "http://host:port", "/tmp"]
)
def test_a_mirror_that_is_no_web_address_is_refused(mirror):
    with pytest.raises(FractalError, match="the mirror .* is no"):
        download(SIZE, mirror, lambda done: None)


def test_the_environment_names_a_mirror(server, monkeypatch):
    monkeypatch.setenv(MIRROR_VARIABLE, f"{server.address}/models/")
    download(SIZE, None, lambda done: None)
    assert server.requests == [("/models/digits.pth", None)]


def test_offline_only_the_cache_is_used(server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE forbids" in _refusal(server)
        assert not server.requests
    file = _download(server)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_cached(SIZE) == file


def test_a_proxy_of_the_environment_is_used(server, monkeypatch):
    """The proxy receives the whole address of a host that does not exist."""
    monkeypatch.setenv("http_proxy", server.address)
    download(SIZE, "http://published.invalid", lambda done: None)
    assert server.requests == [("http://published.invalid/digits.pth", None)]


def test_secrets_of_an_address_are_not_shown(server):
    server.status = 403
    mirror = server.address.replace("://", "://user:hunter2@")
    with pytest.raises(FractalError) as raised:
        download(SIZE, mirror, lambda done: None)
    assert "hunter2" not in str(raised.value)


def test_a_damaged_cached_file_is_downloaded_again(server, cache, content):
    file = _download(server)
    file.write_bytes(content[:-100])
    assert find_cached(SIZE) is None
    assert _download(server).read_bytes() == content


def test_only_one_process_downloads(server, content):
    """The second one waits for the first, then finds the complete file."""
    is_first, may_continue = threading.Event(), threading.Event()

    def wait_once(done: int) -> None:
        is_first.set()
        assert may_continue.wait(60)

    first = threading.Thread(target=_download, args=(server, wait_once))
    first.start()
    assert is_first.wait(60)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        second = pool.apply_async(_download_quietly, (server.address,))
        with pytest.raises(multiprocessing.TimeoutError):
            second.get(0.3)
        may_continue.set()
        assert second.get(60) == len(content)
    first.join()
    assert len(server.requests) == 1


def _download_quietly(address: str) -> int:
    return download(SIZE, address, lambda done: None).stat().st_size


def test_a_size_that_was_not_published_is_named():
    with pytest.raises(FractalError, match=r"of the size digits was published: choose ar-64 or"):
        download(SIZE, None, lambda done: None)


@pytest.mark.parametrize("name", ADDRESSES)
def test_the_published_lengths_are_expected(name):
    least, most = expected_bytes(load_params(REPOSITORY / "params.yaml").size(name))
    assert least <= MIB_OF_SCRIPT[name] << 20 <= most
    assert ADDRESSES[name].startswith("https://")


def test_every_published_size_has_an_address():
    assert ADDRESSES.keys() == MIB_OF_SCRIPT.keys()
    assert len(set(ADDRESSES.values())) == len(ADDRESSES)
