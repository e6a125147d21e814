"""How a flow tells its failure: one line, which is the message of its run's state.

Decided here: `--watch`, `prefect flow-run inspect` and Prefect's pages show that message, so it is
the reason alone. What a person can mend has no traceback in Prefect's logs; a bug of ours has one.
"""

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect import get_run_logger
from prefect.states import Failed

from fractal_model.common.console import HideUserErrors
from fractal_model.common.errors import FractalError, one_line

P = ParamSpec("P")
T = TypeVar("T")

for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(HideUserErrors())


def failure_reason(error: Exception) -> str:
    """The line that a person reads; a bug's begins with the kind of the exception."""
    return (
        one_line(error) if isinstance(error, FractalError) else f"{_kind(error)}{one_line(error)}"
    )


def _kind(error: Exception) -> str:
    return f"{type(error).__name__}: " if str(error).strip() else ""


def report_failure(function: Callable[P, T]) -> Callable[P, T]:
    """Have the function of a flow end its run as failed with `failure_reason` as the message.

    Who calls the flow gets the exception itself: Prefect raises what a failed state holds.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not isinstance(error, FractalError):
                get_run_logger().exception("this is a bug of ours:")
            return Failed(message=failure_reason(error), data=error)  # type: ignore[return-value]

    return run
