"""Early warnings of a training: each is given once, when its condition begins."""

from __future__ import annotations

import pytest

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


def test_a_loss_far_above_the_champions_is_a_warning():
    watch = Watch(reference=((0.0, 5.0), (2.0, 3.0)))
    metrics, warnings = watch.examine(report(epoch=1.0, loss=4.1))
    assert metrics["loss_over_reference"] == pytest.approx(0.1)
    assert not warnings
    metrics, warnings = watch.examine(report(epoch=9.0, loss=3.5))
    assert metrics["loss_over_reference"] == pytest.approx(0.5)
    assert warnings == ["the loss is 0.50 nats above the champion's at this epoch"]


def test_a_change_of_workers_is_a_warning_but_no_drop_in_throughput():
    watch = Watch()
    for _ in range(6):
        watch.examine(report())
    metrics, warnings = watch.examine(report(workers=2, speed=40))
    assert warnings == ["the number of workers is now 2 instead of 4"]
    assert metrics == {}
    assert watch.examine(report(workers=2, speed=40))[1] == []
