"""DVC's stages in a git repository: the whole job, experiments, and data shared by a remote."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest
import yaml

from fractal_model.config.params import load_params
from fractal_model.data.manifest import read_manifest
from fractal_model.tracking import registry, store
from tests.support.dvc_project import commit, dvc, make_checkout, run
from tests.support.params import small_params

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SIZES = {"pipeline": {"sizes": {"digits": "digits"}}}
RESULTS = {"model.json", "training.json", "loss.csv", "held-out.csv", "metrics.json", "samples.png"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with small settings, whose pipeline DVC has run and whose lock is committed."""
    folder = tmp_path_factory.mktemp("dvc") / "checkout"
    content = small_params() | SIZES
    content["training"]["digits"].update(validate_every_epochs=1, ema_decays=[])
    done = use_dvc(make_checkout(folder, content), "repro")
    assert "Running stage 'evaluate@digits'" in done
    commit(folder, "results")
    return folder


def use_dvc(folder: Path, *words: str) -> str:
    done = dvc(folder, *words, PREFECT_HOME=str(folder.parent / "prefect"), PYTHONPATH="")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_whole_job_leaves_results_and_a_champion(checkout):
    results = checkout / "outputs/digits"
    assert {file.name for file in results.iterdir()} == RESULTS
    for name, column in (("loss.csv", "loss"), ("held-out.csv", "nll_bits_per_dim")):
        rows = list(csv.DictReader((results / name).read_text().splitlines()))
        assert len(rows) >= 3 and 0 < float(rows[-1][column]) < float(rows[0][column])
    store.connect(checkout / "outputs")
    assert registry.aliased_version("digits", "champion") == "1"


def test_with_nothing_changed_nothing_runs(checkout):
    assert dvc(checkout, "status", "--quiet").returncode == 0
    out = use_dvc(checkout, "repro")
    assert "Running" not in out and "up to date" in out


def test_a_lost_model_is_trained_again(checkout, tmp_path):
    """DVC has the files of the results in its cache, but not the model."""
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns("outputs"))
    out = use_dvc(copy, "repro", "--dry", "train@digits")
    assert "Running stage 'train@digits'" in out and "Running stage 'digits'" not in out


def test_an_experiment_is_compared_and_its_model_kept(checkout):
    use_dvc(checkout, "exp", "run", "--temp", "-n", "short", "-S", "training.digits.epochs=2")
    table = csv.DictReader(io.StringIO(use_dvc(checkout, "exp", "show", "--csv")))
    rows = {row["Experiment"] or row["rev"]: row for row in table}
    assert rows["short"]["training.digits.epochs"] == "2"
    for metric in ("fid", "nll_bits_per_dim", "training.loss"):
        assert float(rows["short"][metric]) != float(rows["workspace"][metric]) > 0
    store.connect(checkout / "outputs")
    assert [str(version.version) for version in registry.versions("digits")] == ["2", "1"]
    assert (registry.resolve("digits").checkpoint / "COMPLETE").is_file()
    use_dvc(checkout, "plots", "diff", "short")
    pictures = {file.name for file in (checkout / "dvc_plots/static").iterdir()}
    assert {"short_outputs_digits_samples.png", "workspace_outputs_digits_samples.png"} <= pictures
    assert run(checkout, "git", "status", "--porcelain").stdout == ""


def test_an_experiment_changes_only_its_setting(tmp_path):
    """DVC writes the file anew: comments stay, and the sizes that share a recipe keep theirs."""
    from dvc.utils.hydra import apply_overrides

    from tests.support.params import SHIPPED

    file = tmp_path / "params.yaml"
    shutil.copy(SHIPPED, file)
    apply_overrides(file, ["training.digits.epochs=3"])
    expected = yaml.safe_load(SHIPPED.read_text())
    expected["training"]["digits"]["epochs"] = 3
    assert yaml.safe_load(file.read_text()) == expected
    assert "# published: 0.9; a shorter memory is better for few steps" in file.read_text()
    assert load_params(file).training["digits"].epochs == 3


def test_prepared_data_comes_from_a_remote_without_the_raw_images(checkout, tmp_path):
    use_dvc(checkout, "remote", "add", "--default", "team", str(tmp_path / "team"))
    use_dvc(checkout, "push", "data/digits", "data/digits-reference.npz")
    commit(checkout, "remote")
    clone = tmp_path / "clone"
    assert run(tmp_path, "git", "clone", "--quiet", str(checkout), str(clone)).returncode == 0
    use_dvc(clone, "pull", "data/digits", "data/digits-reference.npz")
    assert read_manifest(clone / "data/digits") == read_manifest(checkout / "data/digits")
    assert "Running" not in use_dvc(clone, "repro", "digits-reference")
