"""The local store: created once, moved and copied, its errors on one line."""

import multiprocessing
import os
import resource
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from fractal_model.common.console import errors_on_one_line
from fractal_model.common.errors import FractalError
from fractal_model.tracking import local_store, store

TEXT = "kept"


@contextmanager
def disk_of(bytes_: int) -> Iterator[None]:
    """Limit the files of this process to `bytes_` bytes: for SQLite the disk is then full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(autouse=True)
def no_server(monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def outputs(tmp_path, empty_outputs) -> Path:
    """Outputs with one run that has an artifact, and one registered version of it."""
    folder = tmp_path / "a project" / "outputs"
    shutil.copytree(empty_outputs, folder)
    store.connect(folder)
    with mlflow.start_run(experiment_id=store.get_or_create_experiment("digits", folder)) as run:
        mlflow.log_text(TEXT, "a.txt")
    client = mlflow.MlflowClient()
    client.create_registered_model("fractal-digits")
    client.create_model_version("fractal-digits", run.info.artifact_uri, run.info.run_id)
    return folder


def _read_registered(outputs: Path, scratch: Path) -> str:
    store.connect(outputs)
    folder = mlflow.artifacts.download_artifacts(
        "models:/fractal-digits/1", dst_path=str(scratch / outputs.parent.name)
    )
    return (Path(folder) / "a.txt").read_text()


def _texts(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return "\n".join(connection.iterdump())


def test_a_moved_folder_keeps_its_models(outputs, tmp_path):
    moved = tmp_path / "moved" / "outputs"
    shutil.move(outputs.parent, moved.parent)
    (scratch := tmp_path / "scratch").mkdir()
    assert _read_registered(moved, scratch) == TEXT
    for name in ("a project", "a%20project"):
        assert f"/{name}/" not in _texts(moved / "mlflow/mlflow.db")


def test_a_copy_uses_its_own_files(outputs, tmp_path):
    copy = tmp_path / "copy" / "outputs"
    shutil.copytree(outputs.parent, copy.parent)
    store.connect(copy)
    before = sorted(outputs.rglob("*"))
    with mlflow.start_run(experiment_id=store.get_or_create_experiment("digits", copy)) as run:
        mlflow.log_text(TEXT, "of the copy.txt")
    assert sorted(outputs.rglob("*")) == before
    assert f"/copy/outputs/mlflow/artifacts/{run.info.run_id}/" in run.info.artifact_uri
    (copy / "mlflow/artifacts" / run.info.run_id / "artifacts/of the copy.txt").read_text()
    assert "/copy/" not in _texts(outputs / "mlflow/mlflow.db")
    (scratch := tmp_path / "scratch").mkdir()
    assert _read_registered(outputs, scratch) == _read_registered(copy, scratch) == TEXT


@pytest.mark.parametrize(
    ("folder", "project"),
    [
        ("/p/.dvc/tmp/exps/tmpx1y_2/outputs", "/p/outputs"),
        ("/p/.dvc/tmp/exps/standalone/tmpx1y_2/outputs", "/p/outputs"),
        ("/git/a/p/.dvc/tmp/exps/tmpx1y_2/a/p/outputs", "/git/a/p/outputs"),
        ("/p/dvc/tmp/exps/tmpx1y_2/outputs", "/p/dvc/tmp/exps/tmpx1y_2/outputs"),
    ],
)
def test_a_queued_experiment_uses_the_store_of_its_project(folder, project):
    assert local_store.local_database(Path(folder)) == Path(project, "mlflow/mlflow.db")
    assert local_store.local_artifacts(Path(folder)) == Path(project, "mlflow/artifacts")


def test_only_addresses_of_a_moved_local_store_change(tmp_path):
    artifacts = tmp_path / "outputs/mlflow/artifacts"
    for address in (None, "", "s3://bucket/mlflow/artifacts/1", "mlflow-artifacts:/1", "models:/m"):
        assert local_store._current_address(address, artifacts) == address
    assert local_store._current_address("/b/mlflow/artifacts", artifacts) == str(artifacts)
    link = tmp_path / "link"
    artifacts.mkdir(parents=True)
    link.symlink_to(tmp_path)
    linked = f"{link}/outputs/mlflow/artifacts/1"
    assert local_store._current_address(linked, artifacts) == linked


def _connect(outputs: Path, start, codes) -> None:
    start.wait()
    try:
        codes.put(f"{store.connect(outputs)} {store.get_or_create_experiment('digits', outputs)}")
    except BaseException as error:
        codes.put(repr(error))


def test_four_processes_can_create_the_store_at_once(tmp_path):
    fork = multiprocessing.get_context("fork")  # Children need not import MLflow again.
    start, results = fork.Barrier(4), fork.Queue()
    processes = [
        fork.Process(target=_connect, args=(tmp_path / "outputs", start, results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    answers = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert answers == [f"sqlite:///{tmp_path}/outputs/mlflow/mlflow.db 1"] * 4


def test_a_full_disk_is_named_when_the_database_is_created(tmp_path):
    outputs = tmp_path / "outputs"
    with disk_of(200_000), pytest.raises(FractalError) as raised:
        store.connect(outputs)
    line = str(raised.value)
    assert f"sqlite:///{outputs}/mlflow/mlflow.db" in line
    assert "free some space" in line
    assert "SQL:" not in line
    assert not list((outputs / "mlflow").glob(".*"))
    store.connect(outputs)
    assert store.get_or_create_experiment("digits", outputs) == "1"


def _log_without_end(logged: list[int]) -> None:
    """Log steps as a command does; append each step to `logged` once the store has it."""
    with errors_on_one_line():
        for step in count():
            mlflow.log_metrics({f"m{n}": 0.5 for n in range(100)}, step=step)
            logged.append(step)


def test_a_full_disk_is_named_on_one_line_and_keeps_what_was_logged(outputs, capsys, caplog):
    size, logged = (outputs / "mlflow/mlflow.db").stat().st_size, []
    with mlflow.start_run() as run:
        with disk_of(size + 8192), pytest.raises(SystemExit):
            _log_without_end(logged)
        line = capsys.readouterr().err
        assert line.startswith(f"error: the MLflow store sqlite:///{outputs}/mlflow/mlflow.db ")
        assert "free some space" in line
        assert line.count("\n") == 1
        assert "SQL:" not in line
        assert caplog.text == ""
        store.connect(outputs)
        mlflow.log_metric("m0", 1.0, step=len(logged))
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, "m0")
    assert [point.step for point in points] == [*logged, len(logged)]


def test_a_locked_database_is_named_with_the_way_out(outputs, monkeypatch):
    monkeypatch.setattr(local_store, "BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(outputs / "mlflow/mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(FractalError, match=r"is locked\): wait for the process that holds it"):
            store.connect(outputs)
    store.connect(outputs)


@pytest.mark.parametrize("make", [Path.mkdir, lambda file: file.write_text("no database" * 100)])
def test_a_file_that_is_no_database_is_named(tmp_path, make):
    file = tmp_path / "mlflow/mlflow.db"
    file.parent.mkdir()
    make(file)
    with pytest.raises(FractalError, match=r"mlflow.db does not work \(.*run the same"):
        store.connect(tmp_path)


def test_a_pipe_or_a_device_is_refused_and_stays(tmp_path, monkeypatch):
    pipe, link = tmp_path / "pipe.db", tmp_path / "link.db"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        with pytest.raises(FractalError, match="expected a file.: choose another file"):
            store.connect(tmp_path)
    assert pipe.is_fifo() and link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, pipe]


def test_an_empty_file_behind_a_link_is_used_in_place(tmp_path, monkeypatch):
    file, link = tmp_path / "file.db", tmp_path / "link.db"
    file.touch(mode=0o600)
    inode = file.stat().st_ino
    link.symlink_to(file)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{link}")
    store.connect(tmp_path)
    assert store.get_or_create_experiment("digits", tmp_path) == "1"
    assert link.is_symlink() and file.stat().st_ino == inode and file.stat().st_size > 0
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_busy_store_does_not_count_as_lost_files(outputs, monkeypatch):
    from fractal_model.tracking import registry

    def fail(*args, **kwargs):
        raise MlflowException("(sqlite3.OperationalError) database is locked\n[SQL: SELECT 1]")

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", fail)
    with pytest.raises(FractalError, match=r"\(database is locked\): wait for the process"):
        registry.fetch_checkpoint("models:/fractal-digits/1")


def test_a_deleted_experiment_is_named_with_the_way_to_restore_it(outputs):
    identity = store.get_or_create_experiment("digits", outputs)
    mlflow.delete_experiment(identity)
    with pytest.raises(FractalError, match=rf"was deleted .* restore` .its id is {identity}.,"):
        store.get_or_create_experiment("digits", outputs)
    mlflow.MlflowClient().restore_experiment(identity)
    assert store.get_or_create_experiment("digits", outputs) == identity
