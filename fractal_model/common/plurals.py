"""A number with its noun, for messages."""


def count_of(number: int, noun: str, plural: str = "") -> str:
    """A count in words, for example `1 image` or `1,500 images`. Give `plural` if it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
