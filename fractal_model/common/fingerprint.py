"""The fingerprint of a result. A result with an equal fingerprint is not computed again."""

import hashlib
import json

from pydantic import BaseModel

import fractal_model


def fingerprint(*parts: BaseModel | str) -> str:
    """SHA-256, in hexadecimal, of `parts` (settings, checksums) and of this package's version."""
    values = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    text = json.dumps([fractal_model.__version__, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
