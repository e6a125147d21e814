"""What a flow run tells: its lines in Prefect's log, and its failure as the state's message.

Decided here: a deployment's run has no terminal, so what a command says there is a line of the
run's log; the message is the reason alone, as `--watch`, `prefect flow-run inspect` and Prefect's
pages show it; what a person can mend has no traceback in the log, a bug of ours has one.
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
    """The line that a person reads; a bug's begins with the kind of the exception."""
    if (reason := explanation(error)) is not None:
        return reason
    reason, kind = one_line(error), type(error).__name__
    return reason if reason == kind else f"{kind}: {reason}"


def _lines_to_prefect() -> AbstractContextManager[None]:
    context = FlowRunContext.get()
    is_deployed = context is not None and context.flow_run and context.flow_run.deployment_id
    return redirect_messages(get_run_logger().info) if is_deployed else nullcontext()


def report_failure(function: Callable[P, T]) -> Callable[P, T]:
    """Have the function of a flow end its run as failed with `failure_reason` as the message.

    Who calls the flow gets the exception itself: Prefect raises what a failed state holds.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with _lines_to_prefect():
                return function(*args, **kwargs)
        except Exception as error:
            if explanation(error) is None:
                get_run_logger().exception("this is a bug of ours:")
            return Failed(message=failure_reason(error), data=error)  # type: ignore[return-value]

    return run
