"""Prefect flows: thin orchestration over the functions of `fractal_model`, no numerics.

Importing the package first sets the environment that Prefect reads when it is imported. A failed
run's log and message are on Prefect's pages, so no secret gets into them.
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
# Prefect has no hook for the message of a failed run.
for _module in (prefect.states, prefect._internal.states):
    _module.format_exception = _safe_message  # type: ignore[attr-defined]
