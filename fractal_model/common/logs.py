"""Secrets kept out of what other programs print for us: log records, tracebacks, warnings."""

import logging
import sys
import traceback
import warnings
from types import TracebackType
from typing import Any

from fractal_model.common.safe_text import safe_lines

_make_record = logging.getLogRecordFactory()
_format_warning = warnings.formatwarning


def keep_secrets_out_of_logs() -> None:
    """From here on no log record, uncaught exception or warning of this process has a secret or a
    control character in its text, whoever handles it."""
    logging.setLogRecordFactory(_safe_record)
    warnings.formatwarning = lambda *args, **options: safe_lines(_format_warning(*args, **options))
    sys.excepthook = _print_exception


def _safe_record(*args: Any, **options: Any) -> logging.LogRecord:
    record = _make_record(*args, **options)
    try:
        text = record.getMessage()
    except Exception:
        return record  # a mistake of the caller, which the handler reports
    # Some formatters read the arguments, so that nothing is changed without need.
    if (safe := safe_lines(text)) != text:
        record.msg, record.args = safe, ()
    if record.exc_info and record.exc_info[1] is not None:
        # A formatter takes this text where it is there.
        record.exc_text = safe_lines("".join(traceback.format_exception(*record.exc_info))).rstrip()
    return record


def _print_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(safe_lines(text), end="", file=sys.stderr)
