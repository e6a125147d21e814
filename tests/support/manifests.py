"""The files of infra/ as the tests read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from tests.support import REPOSITORY

INFRA = REPOSITORY / "infra"
KUBERNETES = INFRA / "kubernetes"
Document = dict[str, Any]


def documents() -> list[Document]:
    """Every Kubernetes document, with the file it stands in under `_file`."""
    found = []
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            assert isinstance(document, dict), f"{path.name} has an empty document"
            found.append({"_file": path.name, **document})
    return found


def of_kind(kind: str) -> list[Document]:
    found = [d for d in documents() if d["kind"] == kind]
    assert found, f"no {kind} at all"
    return found


def title(document: Document) -> str:
    metadata = document["metadata"]
    return f"{document['kind']} {metadata.get('name', metadata.get('generateName'))}"


def pod_templates(document: Document) -> Iterator[tuple[str, Document]]:
    """(where, template) of each pod that the document makes."""
    spec = document.get("spec", {})
    name = title(document)
    if document["kind"] in ("Deployment", "StatefulSet", "Job"):
        yield name, spec["template"]
    if document["kind"] == "RayJob":
        yield f"{name}, submitter", spec["submitterPodTemplate"]
        spec = spec["rayClusterSpec"]
    if document["kind"] in ("RayCluster", "RayJob"):
        yield f"{name}, head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield f"{name}, {group['groupName']}", group["template"]


def all_pods() -> list[tuple[str, Document]]:
    found = [pair for document in documents() for pair in pod_templates(document)]
    assert len(found) >= 10
    return found


def all_containers() -> list[tuple[str, Document]]:
    return [(name, c) for name, pod in all_pods() for c in pod["spec"]["containers"]]


def variables(container: Document) -> dict[str, Any]:
    """Name to value, or to the reference that stands for it."""
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in container.get("env", [])}
