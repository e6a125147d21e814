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
    """Runs `fractal models` with the store of one params.yaml."""

    def __init__(self, folder: Path) -> None:
        self.params = folder / "params.yaml"
        self.params.write_text((REPOSITORY / "params.yaml").read_text())
        self.connect()

    def connect(self) -> None:
        store.connect(self.params.parent / "outputs")

    def __call__(self, *words: object) -> str:
        """Run a command and return what it prints; raise what it raises."""
        every = ["models", *map(str, words), "--params", str(self.params)]
        before, console.width = console.width, 200  # No cell is wrapped.
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
    """A copy of the store, for a test that changes it."""
    shutil.copytree(untouched.params.parent, tmp_path / "copy")
    return Models(tmp_path / "copy")


@pytest.fixture
def unchanged(untouched: Models) -> Iterator[Models]:
    """The store that tests share if they change nothing."""
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


def test_the_list_shows_aliases_metrics_and_decisions(unchanged):
    printed = unchanged("list")
    (row,) = (line for line in printed.splitlines() if "candidate" in line)
    assert "21.00" in row and "0.7000" in row
    assert "not promoted: FID 21.000 against 19.000" in " ".join(printed.split())
    assert "champion" in printed


def test_the_list_as_json_has_every_metric(unchanged):
    (model,) = json.loads(unchanged("list", "--json"))
    assert model["size"] == "digits"
    assert [v["version"] for v in model["versions"]] == ["3", "2", "1"]
    assert [v["aliases"] for v in model["versions"]] == [["candidate"], ["champion"], []]
    assert [v["promoted"] for v in model["versions"]] == [False, True, True]
    assert model["versions"][0]["metrics"]["fid_stderr"] == pytest.approx(0.1)
    assert [c["version"] for c in model["champions"]] == ["1", "2"]


def test_an_empty_registry_lists_no_model(empty):
    assert "no model is registered" in empty("list")
    assert empty("list", "--json").endswith("\n[]\n")


def test_a_preview_is_shown_with_its_count(models):
    registry.tag_version("digits", "3", "fractal.evaluation.zzz", _preview(models))
    assert "30.00 (5k)" in models("list")


def _preview(models: Models) -> str:
    experiment = store.get_or_create_experiment("digits", models.params.parent / "outputs")
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_metrics({"fid_5k": 30.0, "fid_5k_stderr": 2.0})
    return run.info.run_id


def test_a_person_promotes_and_rolls_back(models):
    message = models("promote", "digits", 3, "--because", "it draws sevens")
    assert "version 3 is the champion now, it was version 2 before" in message
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
    ("words", "message"),
    [
        (["promote", "digitz", 1, "--because", "x"], "choose a registered size (digits)"),
        (["promote", "digits", 7, "--because", "x"], "has no version 7: choose 3 or 2 or 1"),
        (["promote", "digits", 2, "--because", "x"], "version 2 of fractal-digits is the champion"),
        (["rollback", "mar-h"], "no model fractal-mar-h is registered"),
    ],
)
def test_a_mistake_is_an_error_on_one_line(unchanged, words, message):
    with pytest.raises(FractalError) as raised:
        unchanged(*words)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("because", [[], ["--because", " "]])
def test_a_promotion_needs_a_reason(unchanged, because):
    with pytest.raises(SystemExit):
        unchanged("promote", "digits", 1, *because)


def test_the_first_champion_cannot_be_rolled_back(models):
    models("rollback", "digits")
    with pytest.raises(FractalError, match="version 1 is the first: choose a version with"):
        models("rollback", "digits")


def test_a_model_without_versions_has_no_champion(empty):
    mlflow.MlflowClient().create_registered_model("fractal-digits")
    with pytest.raises(FractalError, match="no earlier champion, it never had a champion"):
        empty("rollback", "digits")
    with pytest.raises(FractalError, match="no version 1: no version exists, train one"):
        empty("promote", "digits", 1, "--because", "x")
