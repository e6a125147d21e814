"""The schema of params.yaml explains every setting and accepts the shipped file."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

from fractal_model.config.json_schema import SCHEMA_FILE, schema_text
from tests.support import REPOSITORY
from tests.support.params import SHIPPED

SCHEMA = json.loads(schema_text())


def test_the_committed_schema_is_that_of_the_settings():
    assert (REPOSITORY / SCHEMA_FILE).read_text() == schema_text(), "run `fractal schema`"


def test_every_setting_has_a_description():
    parts = {"": SCHEMA, **SCHEMA["$defs"]}
    settings = {
        f"{name}.{key}": setting
        for name, part in parts.items()
        for key, setting in part.get("properties", {}).items()
    }
    assert len(settings) > 90
    assert [name for name, setting in settings.items() if not setting.get("description")] == []


def test_the_shipped_file_is_valid_and_names_the_schema():
    text = SHIPPED.read_text()
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={SCHEMA_FILE}"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(yaml.safe_load(text), SCHEMA)


@pytest.mark.parametrize(("key", "value"), [("epoch", 5), ("epochs", 0), ("precision", "float16")])
def test_an_editor_sees_a_wrong_setting(key, value):
    content = yaml.safe_load(SHIPPED.read_text())
    content["training"]["digits"][key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)
