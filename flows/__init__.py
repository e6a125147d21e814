"""Prefect flows: thin orchestration of the functions of `fractal_model`, without numerics.

This package imports `fractal_model` before Prefect, to set environment variables that Prefect reads
on import. Prefect's pages show the log and message of a failed run: secrets are removed from both.
"""

from typing import Any

import fractal_model  # noqa: F401  isort: skip

import prefect._internal.states
import prefect.states

from fractal_model.common.logs import keep_secrets_out_of_logs
from fractal_model.common.safe_text import safe_lines

_format_exception = prefect.states.format_exception


def _safe_message(*args: Any, **options: Any) -> str:
    return safe_lines(_format_exception(*args, **options))


keep_secrets_out_of_logs()
# Prefect has no hook for the message of a failed run, so its function is replaced.
for _module in (prefect.states, prefect._internal.states):
    _module.format_exception = _safe_message  # type: ignore[attr-defined]
