"""A person's own images of 64 × 64 are registered, prepared, trained on and evaluated."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import mlflow
import pytest

from flows import evaluate, train
from fractal_model.cli import app
from fractal_model.data.manifest import read_manifest
from fractal_model.generation.pictures import save_png
from fractal_model.metrics.names import SAMPLE_METRICS
from fractal_model.tracking import registry
from tests.support import random_images
from tests.support.params import small_params
from tests.support.projects import Project, make_project

SIZE, DATASET = "tiny", "own"
SAMPLES = 6
SPEED = {"seconds_per_image", "images_per_second"}


def _settings() -> dict:
    """The small settings with an additional size of 64 × 64 in two levels."""
    content = small_params()
    for section in ("models", "training", "sampling", "evaluation"):
        content[section][SIZE] = copy.deepcopy(content[section]["digits"])
    content["models"][SIZE].update(patch_sizes=[64, 8, 1], num_classes=2)
    content["training"][SIZE].update(
        dataset=DATASET, epochs=2, batch_size=6, workers=1, min_workers=1, images_per_worker=6
    )
    content["sampling"][SIZE].update(iterations=[2, 2])
    content["evaluation"][SIZE].update(
        likelihood_passes=1, samples_per_class=SAMPLES // 2, preview_per_class=1, kid_subset_size=3
    )
    return content


def _write_images(root: Path) -> None:
    """Write 12 images of each of two classes, one of them darker."""
    for number, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True)
        for index, image in enumerate(random_images(12, size=64, seed=number)):
            save_png(image // (2 - number), root / name / f"{index}.png")


@pytest.fixture
def project(tmp_path, prefect) -> Project:
    project = make_project(tmp_path / "a project", _settings())
    _write_images(tmp_path / "my images")
    words = ["--name", DATASET, "--resolution", "64", "--holdout", "0.25"]
    project.run(app.main, "data", "register", str(tmp_path / "my images"), *words)
    project.run(app.main, "data", "prepare", DATASET)
    project.run(app.main, "data", "reference", DATASET)
    return project


@pytest.mark.slow
def test_own_images_of_64_px_from_the_folder_to_the_champion(project, capsys):
    manifest = read_manifest(project.folder / "data" / DATASET)
    assert manifest.resolution == 64 and manifest.class_names == ("dark", "light")
    assert sum(split.images for split in manifest.splits.values()) == 24
    project.run(train.main, "--size", SIZE)
    project.run(evaluate.main, "--size", SIZE)
    assert registry.aliased_version(SIZE, registry.CHAMPION) == "1"
    by_flow = _evaluation_run()
    _require_artifacts(by_flow.info.run_id)

    capsys.readouterr()
    source = f"models:/fractal-{SIZE}@champion"
    project.run(app.main, "evaluate", source, "--dataset", DATASET, "--json")
    output = json.loads(capsys.readouterr().out)
    metrics, absent = output["metrics"], output["absent"]
    assert {"fid", "kid", "precision", "recall", "nll_bits_per_dim"} <= set(metrics)
    assert set(SAMPLE_METRICS) <= set(metrics) | set(absent)
    assert absent["class_agreement"].endswith("compare by their pixels: at most 16 px")
    assert all(absent.values())
    assert output["protocol"]["checksum"] == by_flow.data.tags["fractal.protocol"]
    for name in set(metrics) - SPEED:
        assert metrics[name] == pytest.approx(by_flow.data.metrics[name], abs=1e-6), name


def _evaluation_run() -> mlflow.entities.Run:
    experiment = mlflow.get_experiment_by_name(f"fractal-{DATASET}")
    (run,) = mlflow.search_runs(
        [experiment.experiment_id], "tags.`fractal.kind` = 'evaluate'", output_format="list"
    )
    return run


def _require_artifacts(run_id: str) -> None:
    files = {file.path for file in mlflow.MlflowClient().list_artifacts(run_id)}
    assert {"results.json", "protocol.json", "samples.png", "report.html"} <= files
