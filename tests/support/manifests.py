"""Readers of the Kubernetes manifests in infra/."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from tests.support import REPOSITORY

INFRA = REPOSITORY / "infra"
KUBERNETES = INFRA / "kubernetes"
Document = dict[str, Any]


def documents() -> list[Document]:
    """All Kubernetes documents, each with the name of its file under the key `_file`."""
    read = []
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            assert isinstance(document, dict), f"{path.name} has an empty document"
            read.append({"_file": path.name, **document})
    return read


def of_kind(kind: str) -> list[Document]:
    matches = [document for document in documents() if document["kind"] == kind]
    assert matches, f"there is no {kind}"
    return matches


def title(document: Document) -> str:
    metadata = document["metadata"]
    return f"{document['kind']} {metadata.get('name', metadata.get('generateName'))}"


def pod_templates(document: Document) -> Iterator[tuple[str, Document]]:
    """Yield the name and the template of each pod that the document makes."""
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
    pods = [pair for document in documents() for pair in pod_templates(document)]
    assert len(pods) >= 10
    return pods


def all_containers() -> list[tuple[str, Document]]:
    return [(name, c) for name, pod in all_pods() for c in pod["spec"]["containers"]]


def variables(container: Document) -> dict[str, Any]:
    """The container's variables: their values, or references to secrets."""
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in container.get("env", [])}
