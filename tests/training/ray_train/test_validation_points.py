"""Validation points in a run's storage, and the decision to stop early that is made from them."""

from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem

import fractal_model.training.ray_train.early_stop as early_stop_module
from fractal_model.training.job import ValidationPoint, describe_point
from fractal_model.training.ray_train.early_stop import EarlyStop
from fractal_model.training.ray_train.validation_points import ValidationPoints, follow_points
from tests.support.recipes import RECIPE, make_job


@pytest.fixture
def points(tmp_path: Path) -> ValidationPoints:
    return ValidationPoints(LocalFileSystem(), str(tmp_path))


def make_point(position: int, bits: float | None = 1.0, **changes: object) -> ValidationPoint:
    metrics = {} if bits is None else {"nll_bits_per_dim": bits}
    point = ValidationPoint(position=position, step=1, epoch=position / 100, metrics=metrics)
    return point.model_copy(update=changes)


def finish(points: ValidationPoints, *given: ValidationPoint) -> None:
    for point in given:
        points.start(point.position)
        points.finish(point, {name: name.encode() for name in point.grids})


def test_a_point_is_there_once_it_is_complete(points):
    point = make_point(200, grids=("samples.png",))
    points.start(200)
    assert (points.positions(), points.read(200)) == ([200], None)
    points.finish(point, {"samples.png": b"png"})
    assert points.read(200) == point
    assert points.read_grid(200, "samples.png") == b"png"


def test_points_that_did_not_end_count_from_the_last_complete_one(points):
    points.start(100)
    assert points.unfinished() == [100]
    finish(points, make_point(200))
    points.start(300)
    points.start(400)
    assert points.unfinished() == [400, 300]


def test_incomplete_points_of_an_earlier_process_are_forgotten(points):
    finish(points, make_point(100))
    points.start(200)
    points.forget_unfinished()
    assert points.positions() == [100]


def test_a_point_that_workers_have_measured_is_kept_and_is_not_complete(points):
    points.start(100)
    points.store_measured(make_point(100, 0.5, grids=("samples.png",)), {"samples.png": b"png"})
    points.start(200)
    assert points.unfinished() == [200]
    points.forget_unfinished()
    assert points.positions() == [100]
    assert points.read(100) is None
    measured = points.read_measured(100)
    assert measured.metrics == {"nll_bits_per_dim": 0.5}
    points.finish(measured, {})
    assert points.read(100) == measured
    assert points.read_grid(100, "samples.png") == b"png"


def test_attempts_at_a_point_are_counted(points):
    assert points.attempts(100) == 0
    for attempts in (1, 2):
        points.start(100)
        assert points.attempts(100) == attempts


def test_a_run_that_is_given_up_says_so_once_and_is_validated_after_its_next_start(points):
    finish(points, make_point(100))
    points.start(200)
    points.give_up(make_point(300, None), "no room")
    assert points.is_given_up()
    handed_on = []
    with follow_points(points, lambda point, grids: handed_on.append((point.position, point))):
        pass
    assert [position for position, _ in handed_on] == [100, 300]
    line = describe_point(handed_on[1][1], "nll_bits_per_dim")
    assert line == "epoch 3.00 was not validated: no room"
    points.forget_unfinished()
    assert not points.is_given_up()
    assert points.positions() == [100]


def test_a_point_whose_grid_is_lost_holds_up_no_other(points, tmp_path):
    finish(points, make_point(100, grids=("samples.png",)), make_point(200))
    (tmp_path / "validation/000000000100/samples.png").unlink()
    handed_on = []
    with follow_points(points, lambda point, grids: handed_on.append(point.position)):
        pass
    assert handed_on == [200]


def test_a_half_written_point_is_not_read(points, tmp_path):
    points.start(100)
    (tmp_path / "validation/000000000100/point.json").write_text('{"position": 1')
    assert points.read(100) is None


def test_each_complete_point_is_handed_on_once(points):
    finish(points, make_point(100, grids=("samples.png",)))
    points.start(150)
    handed_on = []
    with follow_points(points, lambda point, grids: handed_on.append((point.position, grids))):
        finish(points, make_point(200))
    assert handed_on == [(100, {"samples.png": b"samples.png"}), (200, {})]


def test_an_error_of_the_receiver_ends_the_block(points):
    def fail(*_: object) -> None:
        raise ValueError("no room")

    finish(points, make_point(100))
    with pytest.raises(ValueError, match="no room"), follow_points(points, fail):
        pass


@pytest.mark.parametrize(
    ("point", "line"),
    [
        (make_point(300, 0.5), "epoch 3.00: 0.5000 bits/dim held out"),
        (make_point(300, None, failure="no room"), "epoch 3.00 was not validated: no room"),
        (make_point(300, 0.5, failure="x"), "epoch 3.00: 0.5000 bits/dim held out; x"),
    ],
)
def test_a_point_is_one_line(point, line):
    assert describe_point(point, "nll_bits_per_dim") == line


def early_stop(points: ValidationPoints, tmp_path: Path, patience: int) -> EarlyStop:
    recipe = RECIPE.model_copy(
        update={"stop_after_epochs_without_gain": patience, "stall_seconds": 1.0}
    )
    return EarlyStop(make_job(tmp_path, recipe=recipe), patience * 100, points)


@pytest.mark.parametrize(
    ("bits", "patience", "is_due"),
    [
        ([1.0, 0.9, 0.8], 2, False),
        ([1.0, 0.9, 0.95, 0.93], 2, True),
        ([1.0, 0.9, 0.95], 2, False),
        ([1.0, 1.0, 1.0], 2, True),  # As good as the best is no gain.
        ([1.0, None, None], 2, False),  # Without measurements nothing is known.
        ([1.0, 2.0, 3.0, 4.0], 0, False),
    ],
)
def test_a_training_stops_after_epochs_without_gain(points, tmp_path, bits, patience, is_due):
    finish(points, *(make_point(100 * (i + 1), value) for i, value in enumerate(bits)))
    stop = early_stop(points, tmp_path, patience)
    stop.decide(position=100 * len(bits) + 100, previous=100 * len(bits))
    assert stop.is_due is is_due


def test_nothing_is_awaited_of_a_run_that_is_not_validated_any_more(points, tmp_path, monkeypatch):
    finish(points, make_point(100, 1.0))
    points.give_up(make_point(300, None), "too slow")
    monkeypatch.setattr(early_stop_module.time, "sleep", pytest.fail)
    stop = early_stop(points, tmp_path, 3)
    stop.decide(position=500, previous=400)
    assert not stop.is_due


def test_the_decision_looks_at_earlier_points_only(points, tmp_path):
    finish(points, make_point(100, 1.0), make_point(200, 2.0), make_point(300, 2.0))
    stop = early_stop(points, tmp_path, 2)
    stop.decide(position=300, previous=200)  # A repeated step decides as the first time.
    assert not stop.is_due
    stop.decide(position=400, previous=300)
    assert stop.is_due


def test_a_point_that_does_not_come_is_waited_for_and_ignored(points, tmp_path):
    finish(points, make_point(100, 1.0), make_point(300, 2.0))
    points.start(400)
    stop = early_stop(points, tmp_path, 2)
    stop.decide(position=500, previous=400)
    assert stop.is_due
