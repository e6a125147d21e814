"""The settings in force, one by one, each with the place that its value comes from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fractal_model.common.errors import FractalError
from fractal_model.common.strict_yaml import read_key_lines
from fractal_model.common.validation import keys_of, name_nearest
from fractal_model.config.overrides import parse_override
from fractal_model.config.params_source import ParamsSource


@dataclass(frozen=True)
class Setting:
    """The value of one setting. `keys` lead to it, beginning with its section. `origin` is the file
    and line of its value, `--set` for a value that an override sets, or `default`."""

    keys: tuple[str, ...]
    value: Any
    origin: str


def list_settings(source: ParamsSource, key: str = "") -> list[Setting]:
    """Return the settings in force below `key`, such as `training.digits`; all of them if it is "".
    FractalError: the settings are wrong, or there is none of this name."""
    params = source.load()
    lines = read_key_lines(source.file)
    changed = [parse_override(text).keys for text in source.overrides]
    settings = [
        Setting(keys, value, _origin(keys, is_default, source.file, lines, changed))
        for keys, value, is_default in _leaves(params, (), False)
    ]
    parts = tuple(key.split(".")) if key else ()
    below = [setting for setting in settings if setting.keys[: len(parts)] == parts]
    if not below:
        _refuse(parts, settings)
    return below


def _leaves(
    value: Any, keys: tuple[str, ...], is_default: bool
) -> Iterator[tuple[tuple[str, ...], Any, bool]]:
    """Yield keys and value of each setting, and whether it has the default of its class."""
    if isinstance(value, BaseModel):
        for key, name in keys_of(type(value)).items():
            inner, field = getattr(value, name), type(value).model_fields[name]
            usual = not field.is_required() and inner == field.get_default(
                call_default_factory=True
            )
            yield from _leaves(inner, (*keys, key), usual)
    elif isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*keys, str(key)), False)
    else:
        plain = [*value] if isinstance(value, tuple) else value
        yield keys, str(plain) if isinstance(plain, Path) else plain, is_default


def _origin(
    keys: tuple[str, ...],
    is_default: bool,
    file: Path,
    lines: dict[tuple[str, ...], int],
    changed: list[tuple[str, ...]],
) -> str:
    above = [keys[:length] for length in range(len(keys), 0, -1)]
    if any(place in changed for place in above):
        return "--set"
    if keys in lines:
        return f"{file.name}:{lines[keys]}"
    # A setting can be in the file under an earlier key, such as `ema_decay`.
    return "default" if is_default else file.name


def _refuse(parts: tuple[str, ...], settings: list[Setting]) -> None:
    for length in range(len(parts)):
        known = {
            setting.keys[length]: None
            for setting in settings
            if setting.keys[:length] == parts[:length] and len(setting.keys) > length
        }
        if parts[length] not in known:
            name = ".".join(parts[: length + 1])
            raise FractalError(f"no setting is named {name!r}{name_nearest(parts[length], known)}")
