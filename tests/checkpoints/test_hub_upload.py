"""Pushes to a hub on this machine, by the hub's own client. That server takes all files inside the
commit; the real one takes large ones by another protocol, which these tests do not reach."""

from __future__ import annotations

import huggingface_hub
import huggingface_hub.constants
import pytest

from fractal_model.checkpoints.hub_upload import push_folder, require_login, require_repository_name
from fractal_model.common.errors import FractalError
from tests.support.fake_hub import TOKEN, running_hub


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        yield hub


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    return folder


def test_all_files_arrive_in_a_new_repository(hub, folder):
    assert push_folder(folder, "someone/fractal") == f"{hub.address}/someone/fractal"
    assert [request["name"] for request in hub.created] == ["fractal"]
    assert hub.files == {
        "someone/fractal": {path.name: path.read_bytes() for path in folder.iterdir()}
    }
    assert hub.validated == [(folder / "README.md").read_text()]


def test_a_card_that_the_hub_refuses_is_named(hub, folder):
    hub.metadata_errors = ['"license" must be one of [...]']
    with pytest.raises(FractalError, match='someone/fractal was not pushed .*"license" must') as e:
        push_folder(folder, "someone/fractal")
    assert "\n" not in str(e.value)
    assert not hub.files


def test_a_refused_token_is_named_and_not_shown(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(FractalError, match="someone/fractal was not pushed .*401") as raised:
        push_folder(folder, "someone/fractal")
    assert "\n" not in str(raised.value)
    assert "hf_of_somebody_else" not in str(raised.value)


def test_a_hub_that_does_not_answer_is_named(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FractalError, match="someone/fractal was not pushed"):
        push_folder(folder, "someone/fractal")


@pytest.mark.parametrize("name", ["fractal", "a/b/c", "some one/x", "someone/x..y", "", "/x"])
def test_a_wrong_repository_is_refused(name):
    with pytest.raises(FractalError, match="is no repository's name"):
        require_repository_name(name)


def test_a_push_needs_a_token(monkeypatch):
    monkeypatch.setattr("fractal_model.checkpoints.hub_upload.get_token", lambda: None)
    with pytest.raises(FractalError, match="hf auth login"):
        require_login()


def test_nothing_is_pushed_offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FractalError, match="HF_HUB_OFFLINE"):
        require_login()
