"""The best checkpoint is copied beside the last ones, and nobody waits for the copy."""

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
    """A function that reports checkpoint `number` with a loss to the callback; without a loss, that
    the run ends itself."""
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


def kept(run: Path) -> list[str]:
    names = [path.name for path in (run / "best").iterdir()]
    assert [json.loads((run / "best.json").read_text())["checkpoint"]] == names
    return names


def test_workers_do_not_wait_for_a_copy_and_the_best_that_waits_is_next(run, report, monkeypatch):
    begun, go, copied = threading.Event(), threading.Event(), []

    def slow(filesystem, folder, checkpoint, loss):
        begun.set()
        assert go.wait(60)
        copied.append((Path(checkpoint.path).name, loss))
        keep_best(filesystem, folder, checkpoint, loss)

    monkeypatch.setattr(best, "keep_best", slow)
    report(1, 3.0)
    assert begun.wait(60)
    report(2, 1.0)  # returns while the first is being copied
    report(3, 2.0)
    assert copied == []
    go.set()
    report(4, 4.0)  # the last: waits
    assert copied[:2] == [("checkpoint_1", 3.0), ("checkpoint_2", 1.0)]
    assert kept(run) == ["checkpoint_2"]


@pytest.mark.parametrize("error", [OSError("no route"), pyarrow.ArrowInvalid("no such region")])
def test_a_copy_that_fails_is_told_and_the_next_one_is_made(
    run, report, monkeypatch, caplog, error
):
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as away:
        away.setattr(best, "keep_best", fail)
        report(4, 1.0)
    assert str(error) in caplog.text
    report(4, 2.0)
    assert kept(run) == ["checkpoint_4"]


def test_a_store_that_does_not_answer_costs_no_better_one(run, report, monkeypatch):
    report(4, 1.0)

    def away(*_: object) -> None:
        raise OSError("no route")

    with monkeypatch.context() as gone:
        gone.setattr(json, "loads", away)  # where the score is read
        report(4, 2.0)
    assert json.loads((run / "best.json").read_text())["loss"] == 1.0


def test_a_run_that_ends_itself_waits_for_the_copy(run, report, monkeypatch):
    def slow(*given):
        time.sleep(0.3)
        keep_best(*given)

    monkeypatch.setattr(best, "keep_best", slow)
    report(1, 3.0)
    report(2, None)
    assert kept(run) == ["checkpoint_1"]
