"""The one exception for mistakes that a person can mend.

Its text is a single line: what, what was found, what was expected, the way out. The command line
prints it without a traceback and exits with 1; `assert` is kept for our own bugs.
"""

from fractal_model.common.safe_text import safe_text, without_colours


class FractalError(ValueError):
    """A user's mistake, or a condition of the machine that the user can change.

    Its text is safe to show (see `safe_text`). `setting` names the one setting that mends it; the
    command line shows the flag of that name.
    """

    def __init__(self, message: str, *, setting: str = "") -> None:
        super().__init__(safe_text(message))
        self.setting = setting


def one_line(error: BaseException) -> str:
    """An exception's text on one line, safe to show."""
    return safe_text(" ".join(str(error).split())) or type(error).__name__


def last_line(error: BaseException | str) -> str:
    """The last line of a text that may hold a traceback: the exception that it ends with."""
    line = without_colours(str(error)).strip().rpartition("\n")[2].strip()
    return safe_text(line) or type(error).__name__
