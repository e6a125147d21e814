"""The driver gathers system metrics beside the training, which does not depend on them."""

from __future__ import annotations

import threading

import pytest

from fractal_model.training.ray_train import machines
from fractal_model.training.ray_train.machines import watch_machines


@pytest.fixture
def measure_with(monkeypatch):
    """A function that makes each measurement call a function instead of the cluster's machines."""

    def replace(measure) -> None:
        fake = type("Machines", (), {"measure": lambda self: measure()})
        monkeypatch.setattr(machines, "Machines", fake)
        monkeypatch.setattr(machines, "MEASURE_SECONDS", 0.01)

    return replace


def test_an_error_is_logged_once_and_measuring_continues(measure_with, caplog):
    calls, received, enough = [0], [], threading.Event()

    def measure():
        calls[0] += 1
        if calls[0] < 4:
            raise OSError("no route to host")
        return {"system/a/cpu": float(calls[0])}

    def receive(values):
        received.append(values)
        if len(received) == 3:
            enough.set()

    measure_with(measure)
    with watch_machines(receive):
        assert enough.wait(10)
    assert received[:3] == [{"system/a/cpu": number} for number in (4.0, 5.0, 6.0)]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["system metrics are missing: no route to host"]


def test_a_measurement_that_hangs_does_not_hold_up_the_end(measure_with, monkeypatch):
    monkeypatch.setattr(machines, "ANSWER_SECONDS", 0.1)
    began, never = threading.Event(), threading.Event()

    def measure():
        began.set()
        never.wait(30)
        return {}

    measure_with(measure)
    with watch_machines(print):
        assert began.wait(10)
    assert not never.is_set()
    never.set()
