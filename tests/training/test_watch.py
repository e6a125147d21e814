"""Early warnings of a training: each is given once, when its condition begins."""

from __future__ import annotations

import pytest

from fractal_model.reporting.reference_curve import CurvePoint, ReferenceCurve
from fractal_model.training.watch import Watch
from tests.support.reports import make_report


def report(speed=100.0, waiting=0.0, **changes):
    return make_report(images_per_second=speed, data_wait_share=waiting, **changes)


def test_a_drop_in_throughput_warns_once_until_it_is_over():
    watch = Watch()
    for _ in range(6):
        metrics, warnings = watch.examine(report())
        assert not warnings
    assert metrics["throughput_ratio"] == 1.0
    metrics, warnings = watch.examine(report(speed=30))
    assert metrics["throughput_ratio"] == pytest.approx(0.3)
    assert warnings == ["training runs at 30% of its usual images per second"]
    assert watch.examine(report(speed=30))[1] == []
    assert watch.examine(report())[1] == []
    assert len(watch.examine(report(speed=30))[1]) == 1


def test_the_speed_of_the_first_report_is_not_compared():
    metrics, warnings = Watch().examine(report(speed=0.001))
    assert metrics == {} and warnings == []


def test_workers_that_wait_long_for_data_are_a_warning():
    (warning,) = Watch().examine(report(waiting=0.4))[1]
    assert warning.startswith("workers wait for data 40% of the time: raise loader_processes")
    assert Watch().examine(report(waiting=0.2))[1] == []


def reference(spread: float | None = None, **changes: object) -> ReferenceCurve:
    values = ((1.0, 4.0), (2.0, 3.0), (3.0, 2.8))
    points = tuple(CurvePoint(epoch=e, value=value, spread=spread) for e, value in values)
    return ReferenceCurve(name="the champion", curves={"loss": points}, **changes)


def examine_losses(watch: Watch, *pairs: tuple[float, float]) -> tuple[dict[str, float], list[str]]:
    for epoch, loss in pairs:
        result = watch.examine(report(epoch=epoch, loss=loss))
    return result


def test_the_mean_loss_of_the_last_epoch_is_compared():
    watch = Watch(reference())
    assert examine_losses(watch, (0.5, 9.0)) == ({}, [])
    metrics, _ = examine_losses(watch, (1.0, 1.0))
    assert metrics["loss_over_reference"] == pytest.approx(5.0 - 4.0)
    metrics, _ = examine_losses(watch, (1.5, 4.0), (2.0, 2.2))
    assert metrics["loss_over_reference"] == pytest.approx(3.1 - 3.0)


def test_a_continued_run_is_compared_after_a_whole_epoch():
    watch = Watch(reference())
    assert examine_losses(watch, (1.5, 9.0), (2.0, 9.0)) == ({}, [])
    metrics, _ = examine_losses(watch, (2.5, 3.0))
    assert metrics["loss_over_reference"] == pytest.approx(6.0 - 2.9)


@pytest.mark.parametrize(
    ("spread", "differences", "loss", "is_warned"),
    [
        (None, (), 4.1, False),
        (None, (), 4.5, True),
        (0.01, (), 4.04, False),
        (0.01, (), 4.06, True),
        (0.01, ("epochs 3 instead of 9",), 4.06, False),
        (0.01, ("epochs 3 instead of 9",), 4.5, True),
    ],
)
def test_a_loss_above_what_is_normal_is_a_warning(spread, differences, loss, is_warned):
    watch = Watch(reference(spread, differences=differences))
    _, warnings = examine_losses(watch, (1.0, loss))
    assert bool(warnings) == is_warned
    if warnings:
        expected = f"the mean loss of the last epoch is {loss - 4:.4f} above the champion"
        assert warnings[0].startswith(expected)
        assert examine_losses(watch, (1.01, loss))[1] == []


def test_a_run_beyond_the_end_of_the_reference_is_not_compared():
    assert examine_losses(Watch(reference()), (0.9, 9.0), (9.0, 9.0)) == ({}, [])


def test_a_change_of_workers_is_a_warning_but_no_drop_in_throughput():
    watch = Watch()
    for _ in range(6):
        watch.examine(report())
    metrics, warnings = watch.examine(report(workers=2, speed=40))
    assert warnings == ["the number of workers is now 2 instead of 4"]
    assert metrics == {}
    assert watch.examine(report(workers=2, speed=40))[1] == []
