"""Early warnings."""

from __future__ import annotations

import pytest

from fractal_model.training.watch import Watch
from tests.support.reports import make_report


def report(speed=100.0, waiting=0.0, **changes):
    return make_report(images_per_second=speed, data_wait_share=waiting, **changes)


def test_a_drop_in_throughput_is_said_once_until_it_is_over():
    watch = Watch()
    for _ in range(6):
        metrics, warnings = watch.look(report())
        assert not warnings
    assert metrics["throughput_ratio"] == 1.0
    metrics, warnings = watch.look(report(speed=30))
    assert metrics["throughput_ratio"] == pytest.approx(0.3)
    assert warnings == ["30% of the usual images a second"]
    assert watch.look(report(speed=30))[1] == []
    assert watch.look(report())[1] == []
    assert len(watch.look(report(speed=30))[1]) == 1


def test_the_first_reports_have_nothing_to_be_compared_with():
    metrics, warnings = Watch().look(report(speed=0.001))
    assert metrics == {} and warnings == []


def test_waiting_for_data():
    (warning,) = Watch().look(report(waiting=0.4))[1]
    assert warning.startswith("waiting for data 40% of the time: more loader_processes")
    assert Watch().look(report(waiting=0.2))[1] == []


def test_a_loss_far_above_the_champion_s():
    watch = Watch(reference=((0.0, 5.0), (2.0, 3.0)))
    metrics, warnings = watch.look(report(epoch=1.0, loss=4.1))
    assert metrics["loss_over_reference"] == pytest.approx(0.1)
    assert not warnings
    metrics, warnings = watch.look(report(epoch=9.0, loss=3.5))
    assert metrics["loss_over_reference"] == pytest.approx(0.5)
    assert warnings == ["the loss is 0.50 above the champion's at this epoch"]


def test_a_change_of_the_workers_is_said_and_is_no_drop_in_throughput():
    watch = Watch()
    for _ in range(6):
        watch.look(report())
    metrics, warnings = watch.look(report(workers=2, speed=40))
    assert warnings == ["goes on with 2 workers, there were 4"]
    assert metrics == {}
    assert watch.look(report(workers=2, speed=40))[1] == []
