"""A number with its noun, for messages."""


def count_of(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, such as `1,500 images`; the default plural is the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
