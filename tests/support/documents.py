"""The documents that tests compare with the code."""

import re

from tests.support import REPOSITORY

DOCUMENTS = [
    file
    for pattern in ("*.md", "docs/**/*.md", "infra/*.md", "examples/**/*.md")
    for file in sorted(REPOSITORY.glob(pattern))
]
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
"""A block of code."""
SPAN = re.compile(r"`([^`]+)`")
"""Words in backticks, outside blocks of code."""
