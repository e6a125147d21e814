"""The best checkpoint is copied beside the last ones, and workers do not wait for the copy."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
from ray.train import Checkpoint

from fractal_model.training.ray_train import best
from fractal_model.training.ray_train.best import KeepBest, keep_best
from tests.support.recipes import RECIPE, make_job
from tests.support.reports import make_report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for number in (1, 2, 3, 4):
        (tmp_path / f"checkpoint_{number}").mkdir()
        (tmp_path / f"checkpoint_{number}" / "weights").write_text(str(number))
    return tmp_path


@pytest.fixture
def report(run: Path):
    """Function that reports checkpoint `number` with its loss to the callback. Without a loss it
    reports that the run ends itself."""
    job = make_job(run, recipe=RECIPE.model_copy(update={"epochs": 4}))
    context = SimpleNamespace(train_loop_config={"job": job.model_dump_json()})
    callback = KeepBest(str(run))

    def report(number: int, loss: float | None) -> None:
        if loss is None:
            callback.after_report(context, [{"stopped": "why"}], None)
            return
        checkpoint = Checkpoint.from_directory(run / f"checkpoint_{number}")
        metrics = make_report(loss=loss, epoch=float(number)).model_dump(exclude_none=True)
        callback.after_report(context, [metrics], checkpoint)

    return report


def names_in_best(run: Path) -> list[str]:
    names = [path.name for path in (run / "best").iterdir()]
    assert [json.loads((run / "best.json").read_text())["checkpoint"]] == names
    return names


def test_workers_do_not_wait_for_a_copy_and_the_best_later_one_is_next(run, report, monkeypatch):
    started, may_finish, copied = threading.Event(), threading.Event(), []

    def slow(filesystem, folder, checkpoint, loss):
        started.set()
        assert may_finish.wait(60)
        copied.append((Path(checkpoint.path).name, loss))
        keep_best(filesystem, folder, checkpoint, loss)

    monkeypatch.setattr(best, "keep_best", slow)
    report(1, 3.0)
    assert started.wait(60)
    report(2, 1.0)  # It returns while the first checkpoint is copied.
    report(3, 2.0)
    assert copied == []
    may_finish.set()
    report(4, 4.0)  # The last report waits for the copies.
    assert copied[:2] == [("checkpoint_1", 3.0), ("checkpoint_2", 1.0)]
    assert names_in_best(run) == ["checkpoint_2"]


@pytest.mark.parametrize("error", [OSError("no route"), pyarrow.ArrowInvalid("no such region")])
def test_a_failed_copy_is_logged_and_the_next_one_succeeds(run, report, monkeypatch, caplog, error):
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(best, "keep_best", fail)
        report(4, 1.0)
    assert str(error) in caplog.text
    report(4, 2.0)
    assert names_in_best(run) == ["checkpoint_4"]


def test_a_store_that_does_not_answer_keeps_the_better_checkpoint(run, report, monkeypatch):
    report(4, 1.0)

    def fail_to_read(*_: object) -> None:
        raise OSError("no route")

    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", fail_to_read)  # The score is read with it.
        report(4, 2.0)
    assert json.loads((run / "best.json").read_text())["loss"] == 1.0


def test_a_run_that_ends_itself_waits_for_the_copy(run, report, monkeypatch):
    def slow(*arguments):
        time.sleep(0.3)
        keep_best(*arguments)

    monkeypatch.setattr(best, "keep_best", slow)
    report(1, 3.0)
    report(2, None)
    assert names_in_best(run) == ["checkpoint_1"]
