"""New entries are added to settings without a change of any other byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from fractal_model.common.errors import FractalError
from fractal_model.config.params import load_params
from fractal_model.sizing.entries import add_entries, entries_text, insert_entries
from fractal_model.sizing.proposal import propose
from tests.support.params import SHIPPED
from tests.support.sizing import request

TEXT = SHIPPED.read_text()
PROPOSAL = propose(request())
NEW = "a-new-size"


def added_lines(before: str, after: str) -> list[str]:
    """The lines of `after` that are not in `before`; all others are the same, in the same order."""
    old, new, added = before.splitlines(keepends=True), after.splitlines(keepends=True), []
    while new:
        if old and new[0] == old[0]:
            del old[0], new[0]
        else:
            added.append(new.pop(0))
    assert old == []
    return added


def test_the_shipped_file_keeps_every_byte():
    after = insert_entries(TEXT, NEW, PROPOSAL)
    added = added_lines(TEXT, after)
    assert sum(line.startswith(f"  {NEW}:") for line in added) == 4
    settings = len(PROPOSAL.training) + len(PROPOSAL.evaluation)
    assert len(added) == 4 + settings
    again = insert_entries(after, "another", PROPOSAL)
    assert len(added_lines(after, again)) == len(added)


def test_the_added_size_is_the_proposed_one(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(TEXT)
    add_entries(file, NEW, PROPOSAL)
    params = load_params(file)
    assert params.size(NEW) == PROPOSAL.size(NEW)
    assert set(params.models) == {*load_params(SHIPPED).models, NEW}


def test_a_row_of_a_table_follows_its_columns():
    rows = insert_entries(TEXT, NEW, PROPOSAL).splitlines()
    row, above = (next(r for r in rows if r.startswith(f"  {n}:")) for n in (NEW, "mar-h"))
    for key in ("patch_sizes", "widths", "blocks", "heads", "generators", "conditions", "dropout"):
        assert row.index(f"{key}:") == above.index(f"{key}:")


def test_reasons_are_comments():
    text = insert_entries(TEXT, NEW, PROPOSAL)
    assert f"register: best # {PROPOSAL.training['register'].reason}\n" in text


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text[: text.index("\nnightly:")],
        lambda text: text[: text.index("\nnightly:")].rstrip("\n"),
        lambda text: text.replace("\n  ", "\n    "),
        lambda text: text + "# the end\n",
        lambda text: "---\n" + text,
        lambda text: text.replace("\n# Peak", "\n  # a comment of models\n\n# Peak"),
        lambda text: yaml.safe_dump(yaml.safe_load(text)),
    ],
    ids=["CRLF", "ends", "no newline", "indent", "comment", "document", "inner", "plain"],
)
def test_other_forms_of_the_file_keep_every_byte(tmp_path, change):
    file = tmp_path / "params.yaml"
    file.write_bytes(change(TEXT).encode())
    before = file.read_bytes().decode()
    add_entries(file, NEW, PROPOSAL)
    after = file.read_bytes().decode()
    if before.endswith("\n"):
        added = added_lines(before, after)
        assert all(line.endswith("\r\n" if "\r\n" in before else "\n") for line in added)
    else:
        assert after.startswith(before[: before.index("models:")])
    assert load_params(file).size(NEW) == PROPOSAL.size(NEW)


@pytest.mark.parametrize(
    "section", ["sampling: {}", "sampling:", "sampling: {a: {guidance: 1.0}}", "sampling: [a]"]
)
def test_a_section_that_is_no_block_is_refused(section):
    text = f"models:\n  a: 1\ntraining:\n  a: 1\n{section}\nevaluation:\n  a: 1\n"
    with pytest.raises(FractalError, match="the section sampling is not a block") as refused:
        insert_entries(text, NEW, PROPOSAL)
    assert refused.value.setting == "out"


def test_a_missing_section_is_refused():
    with pytest.raises(FractalError, match="the section models is not a block"):
        insert_entries("training:\n  a: 1\n", NEW, PROPOSAL)


def test_links_and_permissions_stay(tmp_path):
    file, link = tmp_path / "settings.yaml", tmp_path / "params.yaml"
    file.write_text(TEXT)
    file.chmod(0o640)
    link.symlink_to(file)
    add_entries(link, NEW, PROPOSAL)
    assert link.is_symlink() and os.stat(file).st_mode & 0o777 == 0o640
    assert NEW in load_params(link).models
    assert [entry.name for entry in Path(tmp_path).iterdir() if "partial" in entry.name] == []


@pytest.mark.parametrize("name", ["64", "on", "null", "1e3", "flowers"])
def test_a_name_that_yaml_reads_otherwise_is_quoted(name):
    content = yaml.safe_load(entries_text(name, PROPOSAL))
    assert [list(entries) for entries in content.values()] == [[name]] * 4
