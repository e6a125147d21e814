"""Numbers with their nouns, for messages."""


def count_of(number: int, noun: str, plural: str = "") -> str:
    """`1 image`, `1,500 images`; give `plural` where it is not the noun with an s, as of class."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
