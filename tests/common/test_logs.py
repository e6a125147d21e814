"""Logs, tracebacks and warnings have no secrets and no control characters."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import warnings

import pytest

from fractal_model.common import logs
from tests.support import REPOSITORY

ADDRESS = "http://me:s3cret@host:1/x"


@pytest.fixture
def written(monkeypatch):
    """A library's logger, and the stream that its handler writes to."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    before, stream = logging.getLogRecordFactory(), io.StringIO()
    logger, handler = logging.getLogger("a library"), logging.StreamHandler(stream)
    logs.keep_secrets_out_of_logs()
    logger.addHandler(handler)
    yield logger, stream
    logger.removeHandler(handler)
    logging.setLogRecordFactory(before)


def test_messages_arguments_and_tracebacks_have_no_secrets(written):
    logger, stream = written
    try:
        try:
            raise OSError(f"no route to {ADDRESS}")
        except OSError as error:
            raise ValueError("clean") from error
    except ValueError:
        logger.exception("failed at %s \x1b[2J", ADDRESS)
    text = stream.getvalue()
    assert "s3cret" not in text and "\x1b" not in text
    assert r"failed at http://***@host:1/x \x1b[2J" in text
    assert "OSError: no route to http://***@host:1/x" in text and "ValueError: clean" in text
    wrong = logging.getLogRecordFactory()("x", logging.INFO, "file", 1, "%d", ("x",), None)
    assert wrong.args == ("x",), "the handler must see the caller's mistake"


def test_arguments_without_secrets_are_unchanged(written, caplog):
    logger, _ = written
    logger.warning("%s images", 3)
    assert caplog.records[-1].args == (3,)


def test_warnings_and_exceptions_that_python_prints_have_no_secrets():
    code = (
        "import warnings; from fractal_model.common.logs import keep_secrets_out_of_logs as keep;"
        f"keep(); warnings.warn('look at {ADDRESS}'); raise OSError('no {ADDRESS}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 1
    assert "s3cret" not in done.stderr
    assert "look at http://***@host:1/x" in done.stderr
    assert done.stderr.endswith("OSError: no http://***@host:1/x\n")
