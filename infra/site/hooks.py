"""What the documentation site has beside docs/: generated references, and pages of other folders.

MkDocs calls `on_files` before it builds the pages and `on_page_markdown` for each of them. The
reference of the commands comes from their help, that of params.yaml from its JSON schema, so
neither can be out of date.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import typer
import typer.cli
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from fractal_model.cli.app import COMMANDS, load_command
from fractal_model.config.json_schema import schema_text

REPOSITORY = Path(__file__).parents[2]
PAGES = {
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "infra/README.md": "cluster.md",
}
"""Documents outside docs/, and the pages of the site that show them."""
NOTEBOOKS = {
    f"docs/notebooks/{file.name}": f"tutorial/{file.stem}.md"
    for file in sorted((REPOSITORY / "docs" / "notebooks").glob("*.py"))
}
"""Sources of the notebooks, and the pages that show them."""
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_EXTERNAL = re.compile(r"[a-z]+:|#")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files in docs/."""
    contents = {
        "reference/commands.md": describe_commands(),
        "reference/settings.md": describe_settings(),
    }
    for source, page in PAGES.items():
        text = (REPOSITORY / source).read_text(encoding="utf-8")
        contents[page] = relink(text, posixpath.dirname(source), page)
    for source, page in NOTEBOOKS.items():
        contents[page] = describe_notebook(REPOSITORY / source)
    for page, text in contents.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **others: object) -> str:
    """Change the links of a page in docs/ that leave the folder."""
    if page.file.generated_by is not None:
        return markdown
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))
    return relink(markdown, folder, page.file.src_uri)


def relink(text: str, folder: str, page: str) -> str:
    """Return the text of a document of the repository with links that fit its page on the site.
    `folder` is that of the document, from the repository's root. A link to a file that is no page
    becomes its text."""

    def change(link: re.Match[str]) -> str:
        label, target = link.groups()
        if _EXTERNAL.match(target):
            return link.group()
        path, anchor, fragment = target.partition("#")
        place = posixpath.normpath(posixpath.join(folder, path))
        own = place.removeprefix("docs/") if place.startswith("docs/") else ""
        place = (PAGES | NOTEBOOKS).get(place, own)
        if not place:
            return str(label)
        return f"[{label}]({posixpath.relpath(place, posixpath.dirname(page))}{anchor}{fragment})"

    return _LINK.sub(change, text)


def describe_notebook(source: Path) -> str:
    """The page of a notebook: its text and its code. `make notebooks` runs it."""
    text = jupytext.writes(jupytext.read(source), fmt="md")
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).strip()
    heading, _, rest = body.partition("\n")
    note = (
        f"A notebook: `make notebooks` runs it and writes `outputs/notebooks/{source.stem}.ipynb`."
    )
    return f"{heading}\n\n{note}\n{rest}\n"


def describe_commands() -> str:
    """The reference of all commands, from their help."""
    common = "../settings.md#options-of-every-command"
    parts = [f"# Commands\n\nEvery command takes the [common options]({common})."]
    for name in COMMANDS:
        command = _load_quietly(name)
        context = typer.Context(command, info_name=name)
        parts.append(
            typer.cli.get_docs_for_click(
                obj=command, ctx=context, indent=1, name=name, call_prefix="fractal"
            )
        )
    text = "\n\n".join(parts)
    return text.replace("* `--help`: Show this message and exit.\n", "")


def _load_quietly(name: str) -> Any:
    """Import a command. Prefect reads the docstrings of flows with the library that reads those of
    the Python reference, whose warnings about Prefect's use of it would end a strict build."""
    logging.disable(logging.WARNING)
    try:
        return load_command(name)
    finally:
        logging.disable(logging.NOTSET)


def describe_settings() -> str:
    """The reference of params.yaml, from its JSON schema: a table for each section."""
    schema = json.loads(schema_text())
    lines = [
        "# Settings of params.yaml\n",
        "Each section's keys with their types, bounds, defaults and meanings. How the file is "
        "read, and how a command changes a value: [settings](../settings.md).\n",
    ]
    for name, section in schema["properties"].items():
        lines += [f"## {name}\n", _sentence(section), ""]
        for title, fields in _tables(schema, name, section):
            lines += [f"### {title}\n"] if title != name else []
            lines += ["| key | value | default | meaning |", "|---|---|---|---|", *fields, ""]
    return "\n".join(lines) + "\n"


def _tables(schema: Any, path: str, node: Any) -> Iterator[tuple[str, list[str]]]:
    """The tables of a section: its own keys, then those of the mappings in it."""
    node = _resolve(schema, node)
    if entry := _entry(schema, node):
        yield from _tables(schema, f"{path}.SIZE", entry)
        return
    below: list[tuple[str, Any]] = []
    rows = []
    for key, field in node.get("properties", {}).items():
        inner = _resolve(schema, field)
        if "properties" in inner or _entry(schema, inner):
            below.append((key, field))
        meaning = _cell(_sentence(field))
        rows.append(f"| `{key}` | {_type(schema, field)} | {_default(field)} | {meaning} |")
    if rows:
        yield path, rows
    for key, field in below:
        yield from _tables(schema, f"{path}.{key}", field)


def _entry(schema: Any, node: Any) -> Any:
    """What a mapping has for each name, if that is a mapping with keys of its own; else None."""
    for kind in (node.get("additionalProperties"), *node.get("patternProperties", {}).values()):
        if isinstance(kind, dict) and "properties" in _resolve(schema, kind):
            return kind
    return None


def _resolve(schema: Any, node: Any) -> Any:
    """The node that a reference names, or the only one of a union that is a mapping."""
    if "$ref" in node:
        return _resolve(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    for option in node.get("anyOf", ()):
        resolved = _resolve(schema, option)
        if "properties" in resolved:
            return resolved
    return node


def _type(schema: Any, node: Any) -> str:
    if "$ref" in node:
        return _type(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    if "anyOf" in node:
        kinds = [_type(schema, option) for option in node["anyOf"]]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in node or "const" in node:
        return ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    if node.get("type") == "array":
        items = node.get("items", {})
        return f"list of {_type(schema, items)}" if items else "list"
    names = {"object": "mapping", "null": "null", "string": "text", "boolean": "true or false"}
    return names.get(node.get("type", ""), str(node.get("type", "any"))) + _bounds(node)


def _bounds(node: Any) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {node[key]:,}" for key, sign in signs.items() if key in node]
    return " " + ", ".join(bounds) if bounds else ""


def _default(node: Any) -> str:
    if "default" not in node:
        return ""
    return f"`{json.dumps(node['default'], ensure_ascii=False)}`"


def _sentence(node: Any) -> str:
    return str(node.get("description", "")).replace("\n", " ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
