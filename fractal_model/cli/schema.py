"""`fractal schema`: write the JSON schema of params.yaml for editors."""

from pathlib import Path
from typing import Annotated

from fractal_model.cli.options import path_option
from fractal_model.common.console import say
from fractal_model.common.files import atomic_file, require_writable_file
from fractal_model.config.json_schema import SCHEMA_FILE, schema_text


def schema(
    out: Annotated[Path, path_option("The file to write.")] = Path(SCHEMA_FILE),
) -> dict[str, object]:
    """Write the JSON schema of params.yaml, by which editors complete and check it."""
    require_writable_file(out)
    with atomic_file(out) as partial:
        partial.write_text(schema_text(), encoding="utf-8")
    say(f"schema of params.yaml: {out}")
    return {"out": out}
