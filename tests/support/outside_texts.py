"""Dangerous names from outside, and the control characters that must never be shown."""

from __future__ import annotations

import unicodedata

CLEAR_SCREEN, TITLE, BELL = "\x1b[2J", "\x1b]0;owned\x07", "\x07"
RIGHT_TO_LEFT, ISOLATE, NEW_LINE, LONE_BYTE = "\u202e", "\u2066", "\nnext", "\udcff"
NAMES = (
    *(f"cat{part}" for part in (CLEAR_SCREEN, TITLE, BELL, RIGHT_TO_LEFT, ISOLATE, NEW_LINE)),
    *("cat\x9b31m", "cat\r", "cat\u2028", "cat[bold]x[/bold]", f"cat{LONE_BYTE}", "x" * 10_000),
)


def controls(text: str) -> list[str]:
    """The characters of `text` that control a terminal or change the writing direction, without
    line ends."""
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return [c for c in text if unicodedata.category(c) in kinds and c != "\n"]
