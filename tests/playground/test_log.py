"""What the playground writes into the terminal."""

from __future__ import annotations

import logging

import pytest
from starlette.requests import ClientDisconnect

from fractal_model.playground.page import is_disconnect


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ClientDisconnect(), True),
        (ExceptionGroup("of a task", [ClientDisconnect()]), True),
        (ExceptionGroup("of two", [ClientDisconnect(), ValueError()]), False),
        (ValueError(), False),
        (None, False),
    ],
)
def test_only_a_closed_page_is_left_out_of_the_log(error, expected):
    exception = (type(error), error, None) if error is not None else None
    record = logging.LogRecord("a", logging.ERROR, "", 0, "Exception", None, exception)
    assert is_disconnect(record) is expected
