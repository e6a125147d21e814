"""Tables for files and for terminals of any width.

Decided here: a number is never cut and stays on one line. A text is wrapped at spaces. Columns for
which the width does not suffice move to a further table, which repeats the first column. Rich
markup in a cell, such as `[red]`, is shown as it is.
"""

from collections.abc import Collection, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Column, Table
from rich.text import Text

from fractal_model.common.safe_text import LONGEST_NAME, safe_lines, safe_text

_FRAME, _BORDER = 1, 3
_LONGEST_CELL, _LONGEST_WORD = 500, 24
"""Largest number of characters of a cell, and of a word that is kept on one line."""


class FittedTable:
    """A table for terminals of any width. `texts` are the indices of the columns with text; all
    other columns have numbers. If `headings` is False, the names of the columns are not shown."""

    def __init__(
        self,
        title: str,
        columns: Sequence[str],
        *,
        texts: Collection[int] = (0,),
        headings: bool = True,
    ) -> None:
        self._title, self._headings = safe_text(title, LONGEST_NAME), headings
        self._columns = [Text(safe_lines(heading)) for heading in columns]
        self._texts = texts
        self._rows: list[tuple[Sequence[Text], str]] = []
        self._sections: set[int] = set()

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        """Add a row with one cell for each column, in the Rich style `style`. A cell that is a Rich
        `Text` keeps its own style."""
        texts = (c if isinstance(c, Text) else Text(safe_text(c, _LONGEST_CELL)) for c in cells)
        self._rows.append((tuple(texts), style))

    def add_section(self) -> None:
        """Draw a line below the row that was added last."""
        self._sections.add(len(self._rows) - 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        everything = range(1, len(self._columns))
        title, name_only = self._title, self._filled_rows(everything, False)
        for columns in self._divide_columns(options.max_width):
            # A row with only a name is shown once, in the first table.
            rows = sorted(name_only + self._filled_rows(columns, True))
            yield self._table(title, self._column_widths([0, *columns], options.max_width), rows)
            title, name_only = f"{self._title}, continued", []

    def _filled_rows(self, columns: Sequence[int], filled: bool) -> list[int]:
        are_filled = [any(cells[i].plain for i in columns) for cells, _ in self._rows]
        return [row for row, is_filled in enumerate(are_filled) if is_filled == filled]

    def _divide_columns(self, width: int) -> Iterator[list[int]]:
        """Divide the columns among tables of `width` characters. Every table begins with column 0.
        For each table, yield the indices of its further columns: as many as fit, at least one."""
        least = [self._least_width(column) + _BORDER for column in range(len(self._columns))]
        room = width - _FRAME - self._full_width(0) - _BORDER
        if room < max(least[1:]):
            room = width - _FRAME - least[0]
        columns, free = [1], room - least[1]
        for column in range(2, len(least)):
            if least[column] > free:
                yield columns
                columns, free = [], room
            columns.append(column)
            free -= least[column]
        yield columns

    def _column_widths(self, columns: Sequence[int], width: int) -> dict[int, int]:
        """Return the width of each column in characters, by the column's index. A column fits its
        numbers or longest word; columns with text also share the rest of `width`, if needed."""
        widths = {column: self._least_width(column) for column in columns}
        spare = width - _FRAME - sum(widths.values()) - _BORDER * len(widths)
        for column in columns:
            if column in self._texts:
                more = min(spare, self._full_width(column) - widths[column])
                widths[column] = max(1, widths[column] + more)
                spare -= more
        return widths

    def _table(self, title: str, widths: dict[int, int], rows: Sequence[int]) -> Table:
        columns = [
            Column(
                self._columns[column],
                justify="left" if column in self._texts else "right",
                overflow="fold",
                width=width,
            )
            for column, width in widths.items()
        ]
        table = Table(*columns, show_header=self._headings)
        table.title, table.title_justify = Text(title, style="bold"), "left"
        for row in rows:
            cells, style = self._rows[row]
            in_order = [cells[column] for column in widths]
            table.add_row(*in_order, style=style, end_section=row in self._sections)
        return table

    def _full_width(self, column: int) -> int:
        return max(map(cell_len, self._lines(column)), default=0)

    def _least_width(self, column: int) -> int:
        if column not in self._texts:
            return self._full_width(column)
        words = (cell_len(word) for line in self._lines(column) for word in line.split())
        return min(_LONGEST_WORD, max(words, default=0))

    def _lines(self, column: int) -> list[str]:
        heading = self._columns[column].plain.split("\n") if self._headings else []
        return [*heading, *(cells[column].plain for cells, _ in self._rows)]
