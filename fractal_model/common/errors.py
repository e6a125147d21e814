"""The one exception for mistakes that the user can correct.

Its text is a single line: what is wrong, what was found, what was expected, the way out. The
command line prints it without a traceback and exits with 1. `assert` is for bugs of this package.
"""

from collections.abc import Callable

from fractal_model.common.safe_text import safe_text, without_colours


class FractalError(ValueError):
    """An error that the user can correct: a wrong input, or a condition of the machine. Secrets in
    the message are hidden. `setting` is the name of the setting to change, "" if there is none. A
    command shows it as an option behind the message, such as (--size)."""

    def __init__(self, message: str, *, setting: str = "") -> None:
        super().__init__(safe_text(" ".join(message.split())))
        self.setting = setting


_EXPLANATIONS: dict[type[BaseException], Callable[[BaseException], str | None]] = {}


def register_explanation(
    family: type[BaseException], line: Callable[[BaseException], str | None]
) -> None:
    """Register the function `line` for exceptions of class `family`, which a library raises.
    `explanation` calls it. `line` returns one line about a condition of the machine, such as a full
    disk, or None if the exception is a bug."""
    _EXPLANATIONS[family] = line


def explanation(error: BaseException) -> str | None:
    """The line that explains an error to the user; None if the error is a bug of this package."""
    if isinstance(error, FractalError):
        return one_line(error)
    for family, line in _EXPLANATIONS.items():
        if isinstance(error, family) and (text := line(error)) is not None:
            return safe_text(text)
    return None


def one_line(error: BaseException) -> str:
    """An exception's text on one line, safe to show; the exception's class if the text is empty."""
    return safe_text(" ".join(str(error).split())) or type(error).__name__


def last_line(error: BaseException | str) -> str:
    """The last line of an error's text or of a traceback (a string). In a traceback this line names
    the exception."""
    line = without_colours(str(error)).strip().rpartition("\n")[2].strip()
    return safe_text(line) or type(error).__name__
