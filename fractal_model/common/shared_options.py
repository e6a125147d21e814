"""Options that every command has: --quiet, --debug, --json and --set.

Decided here: a command returns its result, and this module prints it with --json. A command without
a result has no --json, and one that reads no params.yaml has no --set.
"""

import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from types import NoneType
from typing import Annotated, Any

import typer
from pydantic_core import to_json

from fractal_model.common.console import output_mode, user_error_line
from fractal_model.common.safe_text import safe_lines

PARAMS = "params"
"""Name of the parameter by which a command asks for the settings file; its value is a dataclass
with a field `overrides`."""
QuietOption = Annotated[
    bool, typer.Option("--quiet", help="Print no progress and no messages, only results.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout.")]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a setting of params.yaml, for example training.digits.epochs=5. May be "
        "repeated.",
    ),
]


def with_shared_options(command: Callable[..., Any]) -> Callable[..., None]:
    """Add the shared options to a command. Its parameter `params` gets the values of --set, and its
    return value is what --json prints."""
    signature = inspect.signature(command, eval_str=True)
    own = list(signature.parameters.values())
    has_result = signature.return_annotation not in (None, NoneType, inspect.Signature.empty)
    shared = {
        **({"overrides": (SetOption, ())} if PARAMS in signature.parameters else {}),
        **({"as_json": (JsonOption, False)} if has_result else {}),
        "quiet": (QuietOption, False),
        "debug": (DebugOption, False),
    }

    def run(
        *, quiet: bool, debug: bool, as_json: bool = False, overrides: Any = (), **values: Any
    ) -> None:
        if overrides:
            values[PARAMS] = replace(values[PARAMS], overrides=tuple(overrides))
        with output_mode(quiet=quiet, as_json=as_json), _traceback(debug):
            result = command(**values)
        if as_json:
            print(to_json(result, indent=1, inf_nan_mode="null").decode())

    decorated: Callable[..., None] = wraps(command)(run)
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [parameter.replace(kind=kind) for parameter in own] + [
        inspect.Parameter(name, kind, annotation=annotation, default=default)
        for name, (annotation, default) in shared.items()
    ]
    decorated.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    decorated.__annotations__ = {p.name: p.annotation for p in parameters}
    return decorated


@contextmanager
def _traceback(is_on: bool) -> Iterator[None]:
    """If `is_on`, print the traceback of an error that is otherwise shown as one line."""
    try:
        yield
    except Exception as error:
        if is_on and user_error_line(error) is not None:
            print(safe_lines("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        raise
