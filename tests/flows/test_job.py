"""The whole pipeline in miniature: data, Ray workers, MLflow, evaluation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import mlflow
import psutil
import pytest
import yaml
from safetensors.torch import load_file

from flows import evaluate, train
from fractal_model.checkpoints.checkpoint import load_checkpoint, verify_checkpoint
from fractal_model.config.params import load_params
from fractal_model.tracking import registry, store
from tests.support import REPOSITORY
from tests.support.params import small_params
from tests.support.projects import make_project

METRICS = {
    "nll_bits_per_dim",
    "nll_bits_per_dim_stderr",
    "nll_conditional_bits_per_dim",
    "nll_conditional_bits_per_dim_stderr",
    "fid",
    "fid_stderr",
    "kid",
    "kid_stderr",
    "precision",
    "recall",
    "class_agreement",
    "seconds_per_image",
    "images_per_second",
}


@pytest.fixture
def client(project):
    store.connect(project.outputs)
    return mlflow.MlflowClient()


def _runs(client, kind):
    experiment = client.get_experiment_by_name("fractal-digits")
    return client.search_runs([experiment.experiment_id], f"tags.`fractal.kind` = '{kind}'")


def _checkpoints(outputs: Path) -> list[Path]:
    paths = outputs.glob("training/digits/*/checkpoint_*")
    return sorted(path for path in paths if path.is_dir())


def test_the_training_run_has_parameters_data_and_curves(project, client):
    (run,) = _runs(client, "train")
    settings = load_params(project.params)
    manifest = json.loads((project.folder / "data/digits/manifest.json").read_text())
    assert run.info.status == "FINISHED"
    assert run.data.params["training.epochs"] == "3"
    assert run.data.params["model.levels.0.width"] == "16"
    assert run.data.tags["fractal.size"] == "digits"
    assert len(run.data.tags["fractal.git_revision"].split("-")[0]) == 40
    assert run.inputs.dataset_inputs[0].dataset.name == manifest["dataset"]
    assert run.data.tags["fractal.dataset_checksum"].startswith(
        run.inputs.dataset_inputs[0].dataset.digest
    )
    losses = client.get_metric_history(run.info.run_id, "loss")
    rates = client.get_metric_history(run.info.run_id, "learning_rate")
    assert len(losses) > 5
    assert losses[-1].value < losses[0].value
    assert max(r.value for r in rates) <= settings.training["digits"].peak_learning_rate
    assert {"images_per_second", "gradient_norm", "epoch"} <= set(run.data.metrics)
    efficiency = {name: run.data.metrics[name] for name in ("tflops", "mfu", "data_wait_share")}
    assert all(0 < value < 1 for value in efficiency.values()), efficiency
    assert run.data.metrics["eta_hours"] == 0
    assert "gpu_memory_gb" not in run.data.metrics
    assert "curves.png" in {file.path for file in client.list_artifacts(run.info.run_id)}
    assert "system/cpu_utilization_percentage" in run.data.metrics


def test_the_candidate_is_a_complete_checkpoint_of_the_run(project, client):
    version = client.get_model_version_by_alias("fractal-digits", "candidate")
    checkpoint = load_checkpoint(registry.resolve("digits").checkpoint)
    images = 3 * (1797 - 40)
    assert str(version.version) == "1"
    assert version.tags["fractal.size"] == "digits"
    assert images <= checkpoint.progress.position < images + 100
    size = load_params(project.params).size("digits").with_class_names(tuple("0123456789"))
    assert checkpoint.build_model().config == size.model


def test_only_the_last_checkpoints_remain_and_are_complete(project):
    checkpoints = _checkpoints(project.outputs)
    assert len(checkpoints) == 2
    for folder in checkpoints:
        verify_checkpoint(folder)


def test_the_evaluation_logs_numbers_table_and_pictures(project, client):
    (run,) = _runs(client, "evaluate")
    assert set(run.data.metrics) == METRICS
    assert 0 < run.data.metrics["nll_bits_per_dim"] < 8
    assert run.data.metrics["nll_bits_per_dim_stderr"] > 0
    assert run.data.metrics["fid"] > 0
    table = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/results.json")
    absent = {row[0]: row[2] for row in table["data"] if row[1] is None}
    assert set(absent) == {"inception_score", "fd_dinov2"}
    assert "classifier" in absent["inception_score"]
    assert (project.outputs / "digits/samples.png").read_bytes().startswith(b"\x89PNG")
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    expected = {"samples.png", "growth.gif", "growth.png", "protocol.json", "report.html"}
    assert expected <= artifacts


def test_the_flows_write_the_files_that_dvc_tracks(project, capsys):
    results = project.outputs / "digits"
    project.run(train.main)  # as tests before this one may have trained and evaluated others
    project.run(evaluate.main, "--model", str(results / "model.json"))
    version = json.loads((results / "model.json").read_text())["model"].rpartition("/")[2]
    reused = f"fractal-digits version {version} has this evaluation: it is reused"
    assert reused in capsys.readouterr().out
    metrics = json.loads((results / "metrics.json").read_text())
    assert set(metrics) == METRICS - {"seconds_per_image", "images_per_second"}
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    files = [
        file
        for stage in (stages["train"]["do"], stages["evaluate"]["do"])
        for kind in ("outs", "metrics", "plots")
        for file in stage.get(kind, [])
    ]
    names = {Path(next(iter(f)) if isinstance(f, dict) else f).name for f in files}
    assert {file.name for file in results.iterdir() if file.is_file()} == names


def test_the_first_candidate_becomes_champion(project, client):
    assert registry.aliased_version("digits", "champion") == "1"
    tags = client.get_model_version("fractal-digits", "1").tags
    assert tags["fractal.decision"] == "there is no champion yet"


def test_a_reused_version_becomes_the_candidate_again(project, client):
    """Another version was registered in between; the settings are unchanged."""
    source = client.get_model_version("fractal-digits", "1").source
    other = client.create_model_version("fractal-digits", source)
    client.set_registered_model_alias("fractal-digits", "candidate", other.version)
    project.run(train.main)
    assert registry.aliased_version("digits", "candidate") == "1"
    client.delete_model_version("fractal-digits", other.version)


def test_under_another_protocol_the_champion_is_evaluated_too(project, client):
    """Only numbers of one protocol are compared."""
    content = small_params()
    content["evaluation"]["digits"]["samples_per_class"] = 4
    file = project.folder / "other.yaml"
    file.write_text(yaml.safe_dump(content))
    other = client.create_model_version(
        "fractal-digits", client.get_model_version("fractal-digits", "1").source
    )
    client.set_registered_model_alias("fractal-digits", "candidate", other.version)
    try:
        evaluate.evaluate_fractal(size="digits", params_file=file)
        evaluations = _runs(client, "evaluate")
        samples = [run.data.params["evaluation.samples_per_class"] for run in evaluations]
        assert sorted(samples) == ["3", "4", "4"]
        decision = client.get_model_version("fractal-digits", other.version).tags
        assert decision["fractal.decision"].startswith("FID")
        assert registry.aliased_version("digits", "champion") == "1"
    finally:
        for run in evaluations[:2]:
            client.delete_run(run.info.run_id)
        client.set_registered_model_alias("fractal-digits", "candidate", "1")
        client.delete_model_version("fractal-digits", other.version)


def test_an_unchanged_run_reuses_version_and_evaluation(project, client, capsys):
    project.run(train.main)
    assert "1 has the same settings and data: it is reused" in capsys.readouterr().out
    project.run(evaluate.main)
    output = capsys.readouterr().out
    assert "has this evaluation: it is reused" in output
    assert "nll_bits_per_dim" in output
    assert "inception_score is absent" in output
    assert "make ui" in output
    assert len(_runs(client, "train")) == len(_runs(client, "evaluate")) == 1


def test_the_registered_model_works_in_another_process(project, tmp_path):
    """The process has another working directory."""
    code = f"""
import mlflow, pandas
mlflow.set_tracking_uri("sqlite:///{project.outputs}/mlflow/mlflow.db")
model = mlflow.pyfunc.load_model("models:/fractal-digits@candidate")
rows = pandas.DataFrame({{"class": [3, 7, 3], "seed": [0, 1, 0], "guidance": [2.0, 1.0, 2.0]}})
images = model.predict(rows)
assert [image[:4] for image in images] == [b"\\x89PNG"] * 3
assert images[0] == images[2] != images[1]
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=project.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.faults
@pytest.mark.parametrize("how", ["killed, newest damaged", "killed", "Ctrl-C", "SIGINT alone"])
def test_a_stopped_training_continues_and_ends_with_the_same_weights(project, tmp_path, how):
    """It is stopped after its first checkpoints, then started again unchanged."""
    again = make_project(tmp_path / "killed", small_params())
    (again.folder / "data").symlink_to(project.folder / "data")
    process = subprocess.Popen(
        again.command("flows.train"),
        env=again.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    needed = 2 if "damaged" in how else 1
    while len(_checkpoints(again.outputs)) < needed and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    if how == "Ctrl-C":  # A terminal sends it to all processes of the command.
        os.killpg(process.pid, signal.SIGINT)
    elif how == "SIGINT alone":
        process.send_signal(signal.SIGINT)
    else:
        os.killpg(process.pid, signal.SIGKILL)  # The server that it started ends too.
        if how == "killed":  # as if the machine was lost; else workers run for some seconds
            for worker in family:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
    status = process.wait(timeout=60)
    assert status == (-signal.SIGKILL if "killed" in how else 130)
    while any(map(_is_alive, family)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert _position(_checkpoints(again.outputs)[0]) < 3 * 1757
    if how == "killed, newest damaged":
        newest = _checkpoints(again.outputs)[-1] / "model.safetensors"
        newest.write_bytes(newest.read_bytes()[:-1])

    again.run(train.main)
    resumed, straight = (_checkpoints(p.outputs)[-1] for p in (again, project))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (resumed, straight))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert _curve(again.outputs) == _curve(project.outputs)


def _curve(outputs: Path) -> list[tuple[int, float]]:
    """Steps and losses of the only training run."""
    store.connect(outputs)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["1"], "tags.`fractal.kind` = 'train'")
    points = client.get_metric_history(run.info.run_id, "loss")
    return sorted((point.step, point.value) for point in points)


def _position(checkpoint: Path) -> int:
    return json.loads((checkpoint / "progress.json").read_text())["position"]


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
