"""The base of every settings object: frozen, and an unknown key is an error."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
NotNegativeInt = Annotated[int, Field(ge=0)]


class StrictModel(BaseModel):
    """Frozen, and an unknown key is an error: a misspelt option must never be ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
