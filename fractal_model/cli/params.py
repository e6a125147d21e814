"""`fractal params show`: print the settings in force and where each comes from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from fractal_model.cli.options import ParamsOption, group
from fractal_model.common.console import show
from fractal_model.common.safe_text import safe_text
from fractal_model.config.params_source import DEFAULT_SOURCE

if TYPE_CHECKING:
    from fractal_model.config.origins import Setting

app = group("Show the settings that are in force.")
COMMENT_COLUMN = 60


@app.callback()
def params() -> None:
    """Show the settings that are in force."""


@app.command("show")
def show_settings(
    key: Annotated[
        str, typer.Argument(help="A setting or section, such as training.digits. Default: all.")
    ] = "",
    params: ParamsOption = DEFAULT_SOURCE,
) -> dict[str, object]:
    """Print the settings in force as YAML, each with the place that its value comes from.

    The place is a line of the settings file, --set, or the default of a setting that neither has.
    With --json every setting has its full name.
    """
    from rich.syntax import Syntax

    from fractal_model.common.console import console
    from fractal_model.config.origins import list_settings

    settings = list_settings(params, key)
    lines = list(_yaml_lines(settings))
    if console.is_terminal:
        show(Syntax("\n".join(lines), "yaml", background_color="default"))
    else:
        show(*lines)
    return {
        ".".join(setting.keys): {"value": setting.value, "from": setting.origin}
        for setting in settings
    }


def _yaml_lines(settings: list[Setting]) -> Iterator[str]:
    above: tuple[str, ...] = ()
    for setting in settings:
        *sections, name = setting.keys
        same = True
        for depth, (key, before) in enumerate(zip_longest(sections, above)):
            same = same and key == before
            if key is not None and not same:
                yield f"{'  ' * depth}{_inline(key)}:"
        above = tuple(sections)
        line = f"{'  ' * len(sections)}{_inline(name)}: {_inline(setting.value)}"
        yield f"{line:<{COMMENT_COLUMN}} # {setting.origin}"


def _inline(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=2**31, allow_unicode=True)
    return safe_text(text.removesuffix("\n").removesuffix("\n..."))
