"""An exception is told on one line."""

from __future__ import annotations

import pytest

from fractal_model.common.errors import last_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("Traceback:\n  File x\n\x1b[36mValueError: no\x1b[0m\n\n", "ValueError: no"),
        (OSError("no route"), "no route"),
        (KeyError(), "KeyError"),
        (RuntimeError(" \n "), "RuntimeError"),
    ],
)
def test_the_last_line_is_the_exception_without_its_traceback(error, expected):
    assert last_line(error) == expected
