"""Removal of secrets from the text that libraries and Python print: logs, tracebacks, warnings."""

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
    """Make the text of all later log records, uncaught exceptions and warnings safe to show."""
    logging.setLogRecordFactory(_safe_record)
    warnings.formatwarning = lambda *args, **options: safe_lines(_format_warning(*args, **options))
    sys.excepthook = _print_exception


def _safe_record(*args: Any, **options: Any) -> logging.LogRecord:
    record = _make_record(*args, **options)
    try:
        text = record.getMessage()
    except Exception:
        return record  # The arguments do not fit the text, as the handler reports.
    # The arguments stay if the text is safe, because some formatters read them.
    if (safe := safe_lines(text)) != text:
        record.msg, record.args = safe, ()
    if record.exc_info and record.exc_info[1] is not None:
        # A formatter prints this text, if there is one, instead of the exception.
        record.exc_text = safe_lines("".join(traceback.format_exception(*record.exc_info))).rstrip()
    return record


def _print_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(safe_lines(text), end="", file=sys.stderr)
