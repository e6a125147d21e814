"""The Kubernetes files refer only to things that exist, and open only the needed connections."""

from __future__ import annotations

import json
import re
from urllib.parse import urlsplit

import pytest
import yaml

from tests.support.manifests import (
    INFRA,
    KUBERNETES,
    all_containers,
    all_pods,
    documents,
    of_kind,
    pod_templates,
    title,
    variables,
)

API_VERSIONS = {
    "Namespace": "v1",
    "Secret": "v1",
    "ConfigMap": "v1",
    "Service": "v1",
    "PersistentVolumeClaim": "v1",
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "Job": "batch/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "RayCluster": "ray.io/v1",
    "RayJob": "ray.io/v1",
}
PARTS = {
    *("ray-head", "ray-worker", "flow-worker", "mlflow", "prefect", "postgres"),
    *("ray-submitter", "prepare-data"),
}
COMPONENT = "app.kubernetes.io/component"


def names(kind):
    return {d["metadata"]["name"] for d in of_kind(kind)}


def keys_of_secrets():
    return {d["metadata"]["name"]: set(d["stringData"]) for d in of_kind("Secret")}


def pinned(package):
    text = (INFRA.parent / "constraints.txt").read_text()
    return re.search(rf"^{package}==(\S+)$", text, re.MULTILINE)[1]


def services():
    """The ports of each service by its name; KubeRay makes the service of a RayCluster's head."""
    ports_of = {
        d["metadata"]["name"]: {p["port"] for p in d["spec"]["ports"]} for d in of_kind("Service")
    }
    for cluster in of_kind("RayCluster"):
        (head,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
        ports = {p["containerPort"] for p in head["ports"]}
        ports_of[f"{cluster['metadata']['name']}-head-svc"] = ports
    return ports_of


def test_every_document_has_its_api_version_and_namespace():
    for document in documents():
        assert document["apiVersion"] == API_VERSIONS[document["kind"]], title(document)
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "fractal", title(document)
    assert names("Namespace") == {"fractal"}


def test_no_two_documents_share_kind_and_name():
    titles = [title(document) for document in documents()]
    assert len(titles) == len(set(titles))


def test_only_files_with_numbers_are_applied_together():
    numbered = {p.name for p in KUBERNETES.glob("[0-9]*.yaml")}
    others = {p.name for p in KUBERNETES.glob("*.yaml")} - numbered
    assert others == {"secrets.example.yaml", "rayjob-mar-l.yaml", "prepare-imagenet256.yaml"}
    assert min(numbered) == "00-namespace.yaml"


@pytest.mark.parametrize(("where", "container"), all_containers(), ids=lambda v: str(v)[:40])
def test_secrets_and_keys_that_a_container_reads_are_in_the_example(where, container):
    secrets = keys_of_secrets()
    for name, value in variables(container).items():
        if isinstance(value, dict):
            reference = value["secretKeyRef"]
            assert reference["key"] in secrets[reference["name"]], (where, name)
    for source in container.get("envFrom", []):
        assert source["secretRef"]["name"] in secrets, where


def test_ray_and_the_flow_worker_have_the_same_token():
    for kind, spec in (("RayCluster", lambda s: s), ("RayJob", lambda s: s["rayClusterSpec"])):
        for document in of_kind(kind):
            options = spec(document["spec"])["authOptions"]
            assert options["mode"] == "token"
            assert "auth_token" in keys_of_secrets()[options["secretName"]]
    (worker,) = [c for _, c in all_containers() if c["name"] == "flow-worker"]
    env = variables(worker)
    assert env["RAY_AUTH_MODE"] == "token"
    assert env["RAY_AUTH_TOKEN"] == {"secretKeyRef": {"name": "ray-token", "key": "auth_token"}}


def test_prefect_and_mlflow_ask_for_a_login_and_their_clients_have_it():
    containers = {c["name"]: c for _, c in all_containers()}

    def secret(name, key):
        return {"secretKeyRef": {"name": name, "key": key}}

    prefect = variables(containers["prefect"])
    login = secret("prefect-login", "auth-string")
    assert prefect["PREFECT_SERVER_API_AUTH_STRING"] == login
    assert prefect["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"].startswith("http://127.0.0.1:4200,")
    assert "--app-name=basic-auth" in containers["mlflow"]["command"]
    server = variables(containers["mlflow"])
    user, password = (secret("mlflow-login", key) for key in ("user", "password"))
    assert server["MLFLOW_AUTH_ADMIN_USERNAME"] == user
    assert server["MLFLOW_AUTH_ADMIN_PASSWORD"] == password
    clients = [v for v in (variables(c) for _, c in all_containers()) if "MLFLOW_TRACKING_URI" in v]
    assert len(clients) == 5
    for client in clients:
        assert client["MLFLOW_TRACKING_USERNAME"] == user
        assert client["MLFLOW_TRACKING_PASSWORD"] == password
    assert variables(containers["flow-worker"])["PREFECT_API_AUTH_STRING"] == login


def test_no_file_contains_a_password():
    for secret in of_kind("Secret"):
        assert secret["_file"] == "secrets.example.yaml"
        for value in secret["stringData"].values():
            assert re.fullmatch(r"\$\{[A-Z_]+\}", value), title(secret)
    secret_name = re.compile("PASSWORD|TOKEN|SECRET|AUTH_STRING|ACCESS_KEY")
    for where, container in all_containers():
        for name, value in variables(container).items():
            assert not (secret_name.search(name) and isinstance(value, str)), (where, name)


@pytest.mark.parametrize(("where", "pod"), all_pods(), ids=lambda v: str(v)[:40])
def test_volumes_exist_and_are_mounted(where, pod):
    spec = pod["spec"]
    volumes = {v["name"]: v for v in spec.get("volumes", [])}
    mounted = {m["name"] for c in spec["containers"] for m in c.get("volumeMounts", [])}
    assert mounted == set(volumes), where
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in names("PersistentVolumeClaim")
        if "configMap" in volume:
            assert volume["configMap"]["name"] in names("ConfigMap")


def test_every_claim_is_used_and_shared_claims_allow_many_nodes():
    users = {}
    for where, pod in all_pods():
        for volume in pod["spec"].get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            users.setdefault(claim, set()).add(where)
    users.pop(None)
    assert set(users) == names("PersistentVolumeClaim")
    for claim in of_kind("PersistentVolumeClaim"):
        many = len(users[claim["metadata"]["name"]]) > 1
        mode = "ReadWriteMany" if many else "ReadWriteOnce"
        assert claim["spec"]["accessModes"] == [mode], title(claim)


def test_addresses_in_the_environment_are_services_with_that_port():
    ports_of, checked = services(), set()
    for where, container in all_containers():
        for name, value in variables(container).items():
            if isinstance(value, str) and "://" in value and "127.0.0.1" not in value:
                url = urlsplit(value)
                assert url.port in ports_of[url.hostname], (where, name)
                checked.add(name)
    assert checked >= {"MLFLOW_TRACKING_URI", "PREFECT_API_URL", "RAY_ADDRESS"}
    assert {"postgres", "mlflow", "prefect", "fractal-ray-head-svc"} == set(ports_of)


def test_services_select_pods_that_listen_on_that_port():
    for service in of_kind("Service"):
        selector = service["spec"]["selector"].items()
        pods = [p for _, p in all_pods() if selector <= p["metadata"]["labels"].items()]
        assert pods, title(service)
        for pod in pods:
            listening = {p["name"] for c in pod["spec"]["containers"] for p in c.get("ports", [])}
            assert {p["targetPort"] for p in service["spec"]["ports"]} <= listening


def test_nothing_is_exposed_outside_the_cluster():
    for service in of_kind("Service"):
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP", title(service)
    for cluster in of_kind("RayCluster"):
        assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert not cluster["spec"]["headGroupSpec"].get("enableIngress")
    for where, pod in all_pods():
        assert not pod["spec"].get("hostNetwork"), where
    for where, container in all_containers():
        assert all("hostPort" not in port for port in container.get("ports", [])), where


def test_workloads_select_their_own_pods():
    for document in documents():
        if document["kind"] in ("Deployment", "StatefulSet"):
            ((_, pod),) = pod_templates(document)
            selector = document["spec"]["selector"]["matchLabels"].items()
            assert selector <= pod["metadata"]["labels"].items(), title(document)


@pytest.mark.parametrize(("where", "pod"), all_pods(), ids=lambda v: str(v)[:40])
def test_pods_meet_the_restricted_standard_of_the_namespace(where, pod):
    (namespace,) = of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False, where
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all("hostPath" not in volume for volume in spec.get("volumes", []))
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(("where", "container"), all_containers(), ids=lambda v: str(v)[:40])
def test_containers_have_pinned_images_requests_and_a_memory_limit(where, container):
    assert re.search(r":\d+\.\d+[\w.-]*$", container["image"]), where
    assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
    assert "memory" in container["resources"]["limits"], where


# ---- Ray


def ray_specs():
    return [d["spec"] for d in of_kind("RayCluster")] + [
        d["spec"]["rayClusterSpec"] for d in of_kind("RayJob")
    ]


def test_the_job_has_the_same_cluster_as_the_permanent_one():
    (cluster,), (job,) = of_kind("RayCluster"), of_kind("RayJob")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


def test_the_ray_version_is_the_pinned_one():
    assert [spec["rayVersion"] for spec in ray_specs()] == [pinned("ray")] * 2


@pytest.mark.parametrize("size", ["ar-64", "mar-64", "mar-b", "mar-l", "mar-h"])
def test_the_cluster_has_room_for_the_workers_of_every_size(size):
    recipe = yaml.safe_load((INFRA.parent / "params.yaml").read_text())["training"][size]
    for spec in ray_specs():
        (group,) = spec["workerGroupSpecs"]
        nodes, start = group["replicas"], group["rayStartParams"]
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert nodes == group["minReplicas"] == group["maxReplicas"] == 4
        assert nodes * int(limits["nvidia.com/gpu"]) == 32
        assert limits["nvidia.com/gpu"] == start["num-gpus"]
        per_node = recipe["workers"] // nodes
        assert per_node * recipe["resources_per_worker"]["GPU"] == int(start["num-gpus"])
        assert (
            per_node * recipe["resources_per_worker"]["CPU"]
            <= int(start["num-cpus"])
            <= int(limits["cpu"])
        )
        memory, store = int(start["memory"]), int(start["object-store-memory"])
        assert per_node * recipe["resources_per_worker"]["memory"] <= memory
        assert memory + store < int(limits["memory"].removesuffix("Gi")) * 2**30


def test_nodes_that_announce_h100s_have_them():
    for spec in ray_specs():
        (group,) = spec["workerGroupSpecs"]
        # KubeRay puts the value into a shell command, so the outer quotes are for the shell.
        text = group["rayStartParams"]["resources"]
        assert text[0] == text[-1] == '"'
        assert json.loads(json.loads(text)) == {"accelerator_type:H100": 1}
        pod = group["template"]["spec"]
        assert "H100" in pod["nodeSelector"]["nvidia.com/gpu.product"]
        assert "nvidia.com/gpu" in {t["key"] for t in pod["tolerations"]}
        head = spec["headGroupSpec"]
        assert head["rayStartParams"]["num-gpus"] == head["rayStartParams"]["num-cpus"] == "0"


def test_shared_memory_is_in_memory_and_within_the_limit():
    for spec in ray_specs():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            (volume,) = [v for v in pod["volumes"] if v["name"] == "shared-memory"]
            (container,) = pod["containers"]
            mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
            assert mounts["shared-memory"] == "/dev/shm"
            assert volume["emptyDir"]["medium"] == "Memory"
            limit = container["resources"]["limits"]["memory"]
            assert int(volume["emptyDir"]["sizeLimit"][:-2]) < int(limit[:-2]) / 2


def test_nccl_fails_fast_and_uses_a_named_interface():
    for spec in ray_specs():
        (container,) = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"]
        env = variables(container)
        assert env["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "1"
        assert env["NCCL_SOCKET_IFNAME"] == env["GLOO_SOCKET_IFNAME"]
        assert env["NCCL_DEBUG"] == "WARN"


# ---- network policies


def selected(selector):
    """The parts that a pod selector matches; an empty selector matches all."""
    if "matchLabels" in selector:
        assert set(selector["matchLabels"]) == {COMPONENT}
        return {selector["matchLabels"][COMPONENT]}
    if "matchExpressions" in selector:
        (expression,) = selector["matchExpressions"]
        assert (expression["key"], expression["operator"]) == (COMPONENT, "In")
        return set(expression["values"])
    return PARTS


def allowed(direction):
    """The connections (from, to, port) that policies of one direction allow; port None: all."""
    connections = set()
    for policy in of_kind("NetworkPolicy"):
        if direction.capitalize() not in policy["spec"]["policyTypes"]:
            assert direction not in policy["spec"], title(policy)
            continue
        own = selected(policy["spec"]["podSelector"])
        for rule in policy["spec"].get(direction, []):
            ports = [p["port"] for p in rule["ports"]] if "ports" in rule else [None]
            for peer in rule["from" if direction == "ingress" else "to"]:
                if set(peer) != {"podSelector"}:
                    continue
                for a in own:
                    for b in selected(peer["podSelector"]):
                        pair = (b, a) if direction == "ingress" else (a, b)
                        connections |= {(*pair, port) for port in ports}
    return connections


def test_the_parts_are_the_labels_of_the_pods():
    assert {pod["metadata"]["labels"][COMPONENT] for _, pod in all_pods()} == PARTS
    for policy in of_kind("NetworkPolicy"):
        assert selected(policy["spec"]["podSelector"]) <= PARTS, title(policy)


def test_everything_is_denied_by_default():
    (policy,) = [d for d in of_kind("NetworkPolicy") if d["metadata"]["name"] == "default-deny"]
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


RAY = [(a, b, None) for a in ("ray-head", "ray-worker") for b in ("ray-head", "ray-worker")]
CONNECTIONS = {
    *RAY,
    ("flow-worker", "ray-head", 8265),
    ("ray-submitter", "ray-head", 8265),
    ("ray-head", "mlflow", 5000),
    ("ray-worker", "mlflow", 5000),
    ("flow-worker", "mlflow", 5000),
    ("flow-worker", "prefect", 4200),
    ("mlflow", "postgres", 5432),
    ("prefect", "postgres", 5432),
}


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_exactly_these_connections_are_allowed(direction):
    assert allowed(direction) == CONNECTIONS


def test_only_kuberays_operator_may_connect_from_outside():
    outside = [
        (policy["metadata"]["name"], peer, rule["ports"])
        for policy in of_kind("NetworkPolicy")
        for rule in policy["spec"].get("ingress", [])
        for peer in rule["from"]
        if set(peer) != {"podSelector"}
    ]
    ((name, peer, ports),) = outside
    assert name == "ray-head" and ports == [{"port": 8265}]
    assert set(peer) == {"namespaceSelector", "podSelector"}
    assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}


def test_the_database_script_is_a_copy_of_that_of_compose():
    (config,) = of_kind("ConfigMap")
    script = (INFRA / "postgres" / "10-databases.sh").read_text()
    assert config["data"] == {"10-databases.sh": script}
