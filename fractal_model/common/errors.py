"""The one exception for mistakes that a person can mend.

Its text is a single line: what, what was found, what was expected, the way out. The command line
prints it without a traceback and exits with 1; `assert` is kept for our own bugs.
"""

from collections.abc import Callable

from fractal_model.common.safe_text import safe_text, without_colours


class FractalError(ValueError):
    """A user's mistake, or a condition of the machine that the user can change.

    Its text is safe to show (see `safe_text`). `setting` names the one setting that mends it; the
    command line shows the flag of that name.
    """

    def __init__(self, message: str, *, setting: str = "") -> None:
        super().__init__(safe_text(" ".join(message.split())))
        self.setting = setting


_EXPLAINED: dict[type[BaseException], Callable[[BaseException], str | None]] = {}


def explain(family: type[BaseException], line: Callable[[BaseException], str | None]) -> None:
    """Have errors of a library's family told by `line` where nothing else has caught them, unless
    it returns None. For errors that mean a condition of the machine: a database on a full disk."""
    _EXPLAINED[family] = line


def explanation(error: BaseException) -> str | None:
    """The one line for a person about an error; None where it is a bug of ours."""
    if isinstance(error, FractalError):
        return one_line(error)
    for family, line in _EXPLAINED.items():
        if isinstance(error, family) and (told := line(error)) is not None:
            return safe_text(told)
    return None


def one_line(error: BaseException) -> str:
    """An exception's text on one line, safe to show."""
    return safe_text(" ".join(str(error).split())) or type(error).__name__


def last_line(error: BaseException | str) -> str:
    """The last line of a text that may hold a traceback: the exception that it ends with."""
    line = without_colours(str(error)).strip().rpartition("\n")[2].strip()
    return safe_text(line) or type(error).__name__
