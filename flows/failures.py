"""Reports a flow run to Prefect: messages go to its log, the reason of a failure to its state.

Decided here: a deployment's run has no terminal, so its messages go to the run's log. A failed
run's state has the reason alone, which `--watch`, `prefect flow-run inspect` and Prefect's pages
show. Only a bug of this package has a traceback in the log. A mistake that a person can correct has
none.
"""

import functools
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

from prefect import get_run_logger
from prefect.context import FlowRunContext
from prefect.states import Failed

from fractal_model.common.console import HideUserErrors, redirect_messages
from fractal_model.common.errors import explanation, one_line

P = ParamSpec("P")
T = TypeVar("T")

for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(HideUserErrors())


def failure_reason(error: Exception) -> str:
    """Reason of a failure on one line. For a bug, it begins with the exception's type."""
    if (reason := explanation(error)) is not None:
        return reason
    reason, kind = one_line(error), type(error).__name__
    return reason if reason == kind else f"{kind}: {reason}"


def _redirect_to_prefect_log() -> AbstractContextManager[None]:
    context = FlowRunContext.get()
    is_deployed = context is not None and context.flow_run and context.flow_run.deployment_id
    return redirect_messages(get_run_logger().info) if is_deployed else nullcontext()


def report_failure(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate the function of a flow. If it raises an exception, the flow run ends as Failed with
    the text of `failure_reason`. Prefect then raises the exception for the caller of the flow."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with _redirect_to_prefect_log():
                return function(*args, **kwargs)
        except Exception as error:
            if explanation(error) is None:
                get_run_logger().exception("this is a bug of Fractal:")
            return Failed(message=failure_reason(error), data=error)  # type: ignore[return-value]

    return run
