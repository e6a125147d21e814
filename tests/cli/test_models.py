"""`fractal models`: list, promote, rollback, on a real store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from typer.testing import CliRunner

from fractal_model.cli.app import app
from fractal_model.common.console import console
from fractal_model.common.errors import FractalError
from fractal_model.config.evaluation import PromotionConfig
from fractal_model.tracking import champions, registry, store
from tests.support import REPOSITORY

FIDS = {"1": 20.0, "2": 19.0, "3": 21.0}


class Models:
    """The command on the store of one params.yaml."""

    def __init__(self, folder: Path) -> None:
        self.params = folder / "params.yaml"
        self.params.write_text((REPOSITORY / "params.yaml").read_text())
        self.connect()

    def connect(self) -> None:
        store.connect(self.params.parent / "outputs")

    def __call__(self, *words: object) -> str:
        """What it prints; raises what it raises."""
        every = ["models", *map(str, words), "--params", str(self.params)]
        before, console.width = console.width, 200  # no cell is folded
        try:
            done = CliRunner().invoke(app, every)
        finally:
            console.width = before
        if done.exception is not None:
            raise done.exception
        return done.output


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Models(tmp_path)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return _three_versions(Models(tmp_path_factory.mktemp("untouched")))


@pytest.fixture
def models(untouched: Models, tmp_path: Path) -> Models:
    """A copy of its own."""
    shutil.copytree(untouched.params.parent, tmp_path / "copy")
    return Models(tmp_path / "copy")


@pytest.fixture
def unchanged(untouched: Models) -> Iterator[Models]:
    """For tests that change nothing, shared by them."""
    untouched.connect()
    yield untouched
    assert _champion() == "2"


def _three_versions(empty: Models) -> Models:
    """fractal-digits with three evaluated versions: 2 is the champion, 3 was worse."""
    client = mlflow.MlflowClient()
    client.create_registered_model("fractal-digits")
    experiment = store.get_or_create_experiment("digits", empty.params.parent / "outputs")
    for version, fid in FIDS.items():
        client.create_model_version("fractal-digits", "test://none/none")
        with mlflow.start_run(experiment_id=experiment) as run:
            mlflow.log_metrics({"fid": fid, "fid_stderr": 0.1, "nll_bits_per_dim": 0.7})
        registry.tag_version("digits", version, "fractal.evaluation.abc", run.info.run_id)
        metrics = {v: {"fid": f, "nll_bits_per_dim": 0.7} for v, f in FIDS.items()}
        champions.compare_and_promote(
            "digits",
            version,
            metrics[version],
            PromotionConfig(),
            protocol="0" * 64,
            metrics_of=metrics.__getitem__,
        )
    registry.set_alias("digits", registry.CANDIDATE, "3")
    return empty


def _champion() -> str | None:
    return registry.aliased_version("digits", registry.CHAMPION)


def test_the_list_says_who_is_what_and_why(unchanged):
    shown = unchanged("list")
    (row,) = (line for line in shown.splitlines() if "candidate" in line)
    assert "21.00" in row and "0.7000" in row
    assert "not promoted: FID 21.000 against 19.000" in " ".join(shown.split())
    assert "champion" in shown


def test_the_list_as_json_has_every_metric(unchanged):
    (found,) = json.loads(unchanged("list", "--json"))
    assert found["size"] == "digits"
    assert [v["version"] for v in found["versions"]] == ["3", "2", "1"]
    assert [v["aliases"] for v in found["versions"]] == [["candidate"], ["champion"], []]
    assert [v["promoted"] for v in found["versions"]] == [False, True, True]
    assert found["versions"][0]["metrics"]["fid_stderr"] == pytest.approx(0.1)
    assert [c["version"] for c in found["champions"]] == ["1", "2"]


def test_an_empty_registry(empty):
    assert "no model is registered" in empty("list")
    assert json.loads(empty("list", "--json")) == []


def test_a_preview_is_shown_with_its_count(models):
    registry.tag_version("digits", "3", "fractal.evaluation.zzz", _preview(models))
    assert "30.00 (5k)" in models("list")


def _preview(models: Models) -> str:
    experiment = store.get_or_create_experiment("digits", models.params.parent / "outputs")
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_metrics({"fid_5k": 30.0, "fid_5k_stderr": 2.0})
    return run.info.run_id


def test_promoted_by_hand_and_rolled_back(models):
    said = models("promote", "digits", 3, "--because", "it draws sevens")
    assert "version 3 is the champion now, it was version 2 before" in said
    assert _champion() == "3"
    tags = registry.version_tags("digits", "3")
    assert tags["fractal.decision"].endswith("it draws sevens")
    assert "it draws sevens" in models("list")
    assert "version 2 is the champion again" in models("rollback", "digits")
    assert "version 1 is the champion again" in models("rollback", "digits", "--because", "so")
    assert _champion() == "1"
    last = champions.history("digits")[-1]
    assert (last.how, last.because, last.version) == ("rollback", "so", "1")
    assert last.who and last.when.endswith("+00:00")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["promote", "digitz", 1, "--because", "x"], "registered are the sizes digits"),
        (["promote", "digits", 7, "--because", "x"], "has no version 7: choose 3 or 2 or 1"),
        (["promote", "digits", 2, "--because", "x"], "version 2 of fractal-digits is the champion"),
        (["rollback", "mar-h"], "no model fractal-mar-h is registered"),
    ],
)
def test_mistakes_are_told_on_one_line(unchanged, words, said):
    with pytest.raises(FractalError) as caught:
        unchanged(*words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("because", [[], ["--because", " "]])
def test_an_override_says_why(unchanged, because):
    with pytest.raises(SystemExit):
        unchanged("promote", "digits", 1, *because)


def test_no_champion_to_go_back_to(models):
    models("rollback", "digits")
    with pytest.raises(FractalError, match="version 1 is the first: choose a version with"):
        models("rollback", "digits")


def test_no_champion_at_all(empty):
    mlflow.MlflowClient().create_registered_model("fractal-digits")
    with pytest.raises(FractalError, match="no earlier champion, it never had a champion"):
        empty("rollback", "digits")
    with pytest.raises(FractalError, match="no version 1: it has none, train one"):
        empty("promote", "digits", 1, "--because", "x")
