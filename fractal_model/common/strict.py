"""The base class of all settings objects, and the types of their numbers.

Decided here: objects are frozen, an unknown key is an error, and true and false are not numbers.
Every number that decides memory or the length of a loop has an upper bound.
"""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

LARGEST_SEED = 2**32 - 1
"""Torch's CPU generator uses 32 bits of a seed; a larger seed would repeat a smaller one's
numbers."""


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not true or false")
    return value


NUMBER = BeforeValidator(_refuse_bool)
"""Annotation that refuses true and false, which pydantic would read as 1 and 0."""
Flag = Annotated[bool, Field(strict=True)]
"""True or false. Values such as `yes` and 1, which pydantic would accept too, are refused."""
PositiveInt = Annotated[int, Field(ge=1, le=2**63 - 1), NUMBER]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED), NUMBER]
NotNegativeInt = Annotated[int, Field(ge=0, le=2**63 - 1), NUMBER]
NotEmpty = Annotated[str, Field(pattern=r"\S")]


class StrictModel(BaseModel):
    """Base class of settings. They are frozen, and an unknown key is an error, so that no misspelt
    key is ignored."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )
