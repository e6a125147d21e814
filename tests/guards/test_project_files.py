"""Licence, citation, workflows and .gitignore are valid and agree with the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib

import jsonschema
import pytest
import yaml

import fractal_model
from tests.support import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
WORKFLOWS = {
    file.stem: yaml.safe_load(file.read_text())
    for file in (REPOSITORY / ".github" / "workflows").glob("*.yml")
}

TEXT = {"type": "string", "minLength": 1}
AUTHOR = {
    "type": "object",
    "anyOf": [{"required": ["name"]}, {"required": ["family-names", "given-names"]}],
    "additionalProperties": False,
    "properties": {"name": TEXT, "family-names": TEXT, "given-names": TEXT},
}
AUTHORS = {"type": "array", "minItems": 1, "uniqueItems": True, "items": AUTHOR}
REFERENCE = {
    "type": "object",
    "required": ["authors", "title", "type"],
    "additionalProperties": False,
    "properties": {
        "authors": AUTHORS,
        "title": TEXT,
        "type": {"const": "article"},
        "journal": TEXT,
        "url": {"type": "string", "pattern": "^https://"},
        "year": {"type": "integer"},
    },
}
CFF = {
    "type": "object",
    "required": ["authors", "cff-version", "message", "title"],
    "additionalProperties": False,
    "properties": {
        "abstract": TEXT,
        "authors": AUTHORS,
        "cff-version": {"const": "1.2.0"},
        "keywords": {"type": "array", "minItems": 1, "uniqueItems": True, "items": TEXT},
        "license": TEXT,
        "message": TEXT,
        "references": {"type": "array", "minItems": 1, "items": REFERENCE},
        "title": TEXT,
        "type": {"const": "software"},
        "version": TEXT,
    },
}
"""The part of the schema of version 1.2.0 that we use."""


def test_the_citation_is_valid():
    jsonschema.validate(CITATION, CFF)


def test_the_citation_agrees_with_the_package():
    assert CITATION["version"] == fractal_model.__version__
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["authors"] == PROJECT["authors"]
    (paper,) = CITATION["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]


def test_the_licence_agrees_with_the_metadata():
    assert PROJECT["license"] == "MIT" and PROJECT["license-files"] == ["LICENSE"]
    lines = (REPOSITORY / "LICENSE").read_text().splitlines()
    assert lines[0] == "MIT License"
    assert lines[2] == f"Copyright (c) 2026 {PROJECT['authors'][0]['name']}"


def steps(name: str) -> list[dict]:
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"]]


def test_one_workflow_runs_for_every_change_and_one_every_week():
    triggers = {name: flow[True] for name, flow in WORKFLOWS.items()}  # YAML reads `on` as true
    assert set(triggers["ci"]) == {"push", "pull_request"}
    assert set(triggers["weekly"]) == {"schedule", "workflow_dispatch"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_jobs_can_only_read_and_have_a_time_limit(name):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    for job in WORKFLOWS[name]["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 120 and "permissions" not in job


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_and_scripts_are_valid(name):
    actions = [step["uses"] for step in steps(name) if "uses" in step]
    assert actions and all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in actions)
    for step in steps(name):
        subprocess.run(["bash", "-n", "-c", step.get("run", "")], check=True)


def test_jobs_use_the_oldest_python_that_the_package_allows():
    versions = [
        s["with"]["python-version"] for name in WORKFLOWS for s in steps(name) if "with" in s
    ]
    assert {f">={version}" for version in versions} == {PROJECT["requires-python"]}


def test_every_change_runs_the_script_of_ci():
    assert steps("ci")[-1]["run"] == "bash .ci/run"
    script = (REPOSITORY / ".ci" / "run").read_text()
    targets = re.findall(r"^make (.+)$", script, re.MULTILINE)
    assert targets == ["lint", "types", "coverage", "test-pages"]
    makefile = (REPOSITORY / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_weekly_job_installs_the_newest_releases():
    text = "\n".join(step.get("run", "") for step in steps("weekly"))
    assert "pip install" in text and "--constraint" not in text and "make test-all" in text


def test_git_ignores_images_and_keeps_descriptions(tmp_path):
    """Images are ignored even after an interrupted build, which DVC has not yet recorded."""
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    descriptions = {"data/registered.yaml", "data/sources/flowers.json", "data/raw.dvc"}
    ignored = {
        "data/flowers/train/00000.parquet",
        "data/flowers-reference.npz",
        "data/flowers-report/contact-sheet.png",
        "data/flowers-quarantined.csv",
        "data/.flowers.partial/train/00000.parquet",
        "data/raw/rose/1.jpg",
        "data/sources/flowers.location",
        "data/sources/flowers.statistics.location",
        "data/sources/flowers.listing.parquet",
    }
    for name in descriptions | ignored:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    command = ["git", "ls-files", "--others", "--exclude-standard"]
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    listing = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(listing.stdout.split()) == descriptions | {".gitignore"}
