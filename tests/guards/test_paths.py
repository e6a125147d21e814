"""Every path that a document or dvc.yaml names is in the repository."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support import REPOSITORY
from tests.support.documents import DOCUMENTS, FENCE, SPAN
from tests.support.source_files import PACKAGE, code_folders

MADE_LATER = ("data/", "outputs/", "prefect.toml", "best/")
"""Results, and what servers and trainings write."""
NO_FILES = (
    # deployments and a block of Prefect
    *("train-fractal/", "evaluate-fractal/", "sweep-guidance/", "tune-ddo/", "nightly-evaluation/"),
    *("prepare-data/", "slack-webhook/"),
    # repositories of the Hugging Face hub, folders of somebody's images, Kubernetes, networks
    "USER/",
    *("train/", "validation/", "test/", "CLASS/", "deploy/", "deployment/", "NET/", "10.0.0.0/"),
)
SUFFIXES = (".cff", ".lock", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml")
"""What a file name without a folder ends with to be taken for one of ours."""
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*/?")


def named_paths(text: str) -> Iterator[str]:
    """Words in backticks that look like paths, and the targets of links."""
    prose = FENCE.sub("", text)
    for span in SPAN.findall(prose):
        for word in span.split():
            path = word.strip(",;:")
            if PATH.fullmatch(path) and ("/" in path or path.endswith(SUFFIXES)):
                yield path
    yield from re.findall(r"\]\(([^)#:]+)[)#]", prose)


def is_there(path: str, folder: Path) -> bool:
    """True if the document's folder, the repository or the package has the path; a name without a
    folder may lie anywhere below the document."""
    roots = (folder, REPOSITORY, PACKAGE)
    return any((root / path).exists() for root in roots) or (
        "/" not in path and folder != REPOSITORY and any(folder.rglob(path))
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "see `model/kernels/linear.py`, `params.yaml` and `x: 3`",
            ["model/kernels/linear.py", "params.yaml"],
        ),
        ("run `python tests/benchmarks/data.py --fast`", ["tests/benchmarks/data.py"]),
        ("[speed](docs/speed.md#gpu) and [paper](https://arxiv.org)", ["docs/speed.md"]),
        ("`python -m flows.train` and `fid_5k`, `.png`\n```\nfractal_model/x.py\n```\n", []),
    ],
)
def test_paths_are_told_from_other_words(text, expected):
    assert list(named_paths(text)) == expected


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(REPOSITORY)))
def test_paths_of_documents_exist(document):
    paths = {
        p for p in named_paths(document.read_text()) if not p.startswith(MADE_LATER + NO_FILES)
    }
    assert {path for path in paths if not is_there(path, document.parent)} == set()


def test_code_that_dvc_depends_on_exists():
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"].values()
    deps = {path for stage in stages for path in stage.get("do", stage).get("deps", [])}
    code = {path for path in deps if not path.startswith(("data/", "${"))}
    assert len(code) > 5
    assert {path for path in code if not (REPOSITORY / path).is_file()} == set()


def tree_of(document: str) -> set[Path]:
    """Paths of the tree in the section "The tree": a line's path, then what it is."""
    (tree,) = FENCE.findall(document.partition("\n## The tree\n")[2].partition("\n## ")[0])
    paths, parents = set(), {0: Path()}
    for line in tree.splitlines()[1:-1]:
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        parents[depth + 1] = parents[depth] / name
        paths.add(parents[depth + 1])
    return paths


def test_the_tree_of_the_architecture_is_the_tree_of_the_repository():
    shown = tree_of((REPOSITORY / "ARCHITECTURE.md").read_text())
    assert {str(path) for path in shown if not (REPOSITORY / path).exists()} == set()
    assert set(code_folders()) <= shown
