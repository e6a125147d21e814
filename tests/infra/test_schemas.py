"""The Kubernetes files and the pods of Ray's resources match published schemas."""

from __future__ import annotations

import jsonschema
import kubernetes_validate
import pytest

from tests.support.manifests import all_pods, documents, of_kind, title

CORE = [d for d in documents() if not d["apiVersion"].startswith("ray.io/")]
OLDEST, NEWEST = "1.30", "1.37"


def without_file(document):
    return {k: v for k, v in document.items() if k != "_file"}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("document", CORE, ids=title)
def test_core_kinds_match_the_strict_schema(document, version):
    kubernetes_validate.validate(without_file(document), version, strict=True)


@pytest.mark.parametrize(("where", "pod"), all_pods(), ids=lambda v: str(v)[:40])
def test_every_pod_template_is_a_valid_pod(where, pod):
    as_pod = {"apiVersion": "v1", "kind": "Pod", **pod}
    kubernetes_validate.validate(as_pod, NEWEST, strict=True)


def test_a_misspelt_field_is_refused():
    (_, pod), *_ = all_pods()
    wrong = {"apiVersion": "v1", "kind": "Pod", **pod, "spec": {**pod["spec"], "tolerance": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


# The fields of ray.io/v1 that these files may use. They are written by hand, not KubeRay's CRD.
STRING, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
START = {"type": "object", "additionalProperties": STRING}
TEMPLATE = {"type": "object", "required": ["metadata", "spec"]}


def closed(required, **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


CLUSTER = closed(
    ["rayVersion", "headGroupSpec", "workerGroupSpecs", "authOptions"],
    rayVersion=STRING,
    authOptions=closed(["mode"], mode={"enum": ["disabled", "token"]}, secretName=STRING),
    headGroupSpec=closed(
        ["rayStartParams", "template"],
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        rayStartParams=START,
        template=TEMPLATE,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            ["groupName", "rayStartParams", "template"],
            groupName=STRING,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=START,
            template=TEMPLATE,
        ),
    },
)
JOB = closed(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=STRING,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    submitterPodTemplate=TEMPLATE,
    rayClusterSpec=CLUSTER,
)


@pytest.mark.parametrize(("kind", "schema"), [("RayCluster", CLUSTER), ("RayJob", JOB)])
def test_rays_resources_use_known_fields_of_the_right_type(kind, schema):
    for document in of_kind(kind):
        jsonschema.validate(document["spec"], schema)
