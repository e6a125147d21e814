"""The base of every settings object, and the types of its numbers.

Decided here: objects are frozen, an unknown key is an error, true and false are no numbers, and
every number that allocates or loops has an upper bound.
"""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

LARGEST_SEED = 2**32 - 1
"""Torch's CPU generator uses 32 bits of its seed; a larger one would alias a smaller."""


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not true or false")
    return value


NUMBER = BeforeValidator(_refuse_bool)
"""Beside a numeric type: pydantic would read true as 1."""
PositiveInt = Annotated[int, Field(ge=1, le=2**63 - 1), NUMBER]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED), NUMBER]
NotNegativeInt = Annotated[int, Field(ge=0, le=2**63 - 1), NUMBER]


class StrictModel(BaseModel):
    """Frozen, and an unknown key is an error: a misspelt option must never be ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
