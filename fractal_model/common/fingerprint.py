"""The fingerprint of a result: equal fingerprints mean that it need not be computed again."""

import hashlib
import json

from pydantic import BaseModel

import fractal_model


def fingerprint(*parts: BaseModel | str) -> str:
    """SHA-256, in hexadecimal, of configurations, checksums and this package's version."""
    values = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    text = json.dumps([fractal_model.__version__, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
