"""The JSON schema of params.yaml, by which editors complete, explain and check its settings."""

import json

from fractal_model.config.params import Params

SCHEMA_FILE = "params.schema.json"
"""Name of the file with the schema, which the first line of params.yaml names."""


def schema_text() -> str:
    """Return the JSON schema of params.yaml as text, with a description of every setting."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Params.model_json_schema(),
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
