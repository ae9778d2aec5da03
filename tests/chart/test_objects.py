"""What the chart makes: objects that Kubernetes accepts, pods with few rights, configurations that load (N11)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.config import Places, config_warnings
from tests.chart.cases import AWKWARD, LONG, MOUNTED, REFUSED, Rendered, component_of, values_of

pytestmark = pytest.mark.slow  # a second of Helm, once for all of them

COMPONENTS = ["front", "node"]
Of = Callable[[str], Rendered]


def test_every_object_passes_strict_validation_n11(results: dict[str, dict[str, Any]], case: str) -> None:
    """By the schemas of the oldest version that the chart supports, of one in between, and of the newest one."""
    assert "error" not in results[case], results[case]["error"]
    assert results[case]["problems"] == []
    assert results[case]["lint"] == []
    assert len(results[case]["objects"]) >= 9


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_make_no_sense_are_refused(results: dict[str, dict[str, Any]], name: str) -> None:
    """With a text that names the value."""
    assert REFUSED[name][1] in results[name]["error"]


def test_configurations_load_n11(chart: Rendered, tmp_path: Path) -> None:
    """A front's has nodes and nothing else, a node's the Ollama of its own pod; nothing in them is odd."""
    front, node = (chart.config(component, tmp_path) for component in COMPONENTS)
    assert [backend.is_nodes for backend in front.backends.values()] == [True]
    assert [backend.url for backend in node.backends.values()] == ["http://127.0.0.1:11434"]
    for config in (front, node):
        assert config_warnings(config, Places(tmp_path / "config/router.yaml"), unix_s=0.0) == []
        assert (config.listen.port, config.admin.port) == (11435, 11436)


def test_teams_and_chains_are_those_of_the_values(of: Of, tmp_path: Path) -> None:
    """Fronts have both; nodes have the teams, for their parts of the cards, and are told chains by fronts."""
    front, node = (of("teams and chains").config(component, tmp_path) for component in COMPONENTS)
    assert [[file.section.team for file in one.team_files] for one in (front, node)] == [["coding", "web"]] * 2
    assert (front.default_team, set(front.chains)) == ("web", {"chat", "qwen3:*"})
    assert front.limits.body_bytes == 134217728
    assert node.chains == {}


def test_fronts_that_share_limits_know_how_many_they_are(of: Of) -> None:
    """Until the store has said so."""
    assert of("shared limits and usage").plain("front")["shared"]["routers"] == 3
    assert "shared" not in of("defaults").plain("front")


def test_awkward_strings_stay_strings(of: Of) -> None:
    """Also those that YAML takes for booleans, numbers and times."""
    chart = of("awkward strings")
    assert list(values_of(chart.router("front")["env"]).values()) == AWKWARD
    assert chart.router("front")["image"] == "null:1.10"
    assert chart.pod("node")["nodeSelector"] == {"y": "1e3"}
    assert chart.workload("node")["spec"]["template"]["metadata"]["labels"]["on"] == "off"
    assert chart.workload("front")["spec"]["template"]["metadata"]["annotations"] == {"y": "on"}
    assert chart.plain("front")["chains"] == {"y": ["on:off", "1e3", "null:null"]}
    assert set(chart.one("ConfigMap", "-teams")["data"]) == {"1e3.yaml"}


def test_names_fit_into_labels_and_the_dns(of: Of) -> None:
    """Kubernetes adds hashes and numbers to the names of workloads."""
    chart = of("AMD")
    assert {one["metadata"]["labels"]["app.kubernetes.io/instance"] for one in chart.objects} == {LONG}
    assert all(len(one["metadata"]["name"]) <= 52 for one in chart.objects)


@pytest.mark.parametrize("component", COMPONENTS)
def test_pods_have_few_rights_s2(chart: Rendered, component: str) -> None:
    """As the restricted profile of Kubernetes wants it, and with a root that cannot be written."""
    pod = chart.pod(component)
    assert (
        pod["securityContext"].items() >= {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}.items()
    )
    assert pod["enableServiceLinks"] is False
    for container in (*pod["containers"], *pod.get("initContainers", [])):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert container["resources"]


def test_only_fronts_that_watch_endpoints_may_ask_kubernetes(chart: Rendered, case: str) -> None:
    """And nothing but those."""
    watches = case == "endpointslices"
    assert [chart.pod(component)["automountServiceAccountToken"] for component in COMPONENTS] == [watches, False]
    roles = [one for one in chart.objects if one["kind"] in ("Role", "RoleBinding", "ServiceAccount")]
    assert len(roles) == (3 if watches else 0)
    assert not chart.all("ClusterRole")
    if watches:
        (rule,) = chart.one("Role")["rules"]
        assert rule == {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}
        account = chart.one("ServiceAccount")["metadata"]["name"]
        assert chart.pod("front")["serviceAccountName"] == account
        assert [one["name"] for one in chart.one("RoleBinding")["subjects"]] == [account]


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_pod_that_ends_has_time_for_its_requests(chart: Rendered, component: str) -> None:
    """Kubernetes kills it later than the router stops waiting, the pause before that included."""
    config, container = chart.plain(component), chart.router(component)
    pause_s = int(container["lifecycle"]["preStop"]["exec"]["command"][-1]) if component == "front" else 0
    grace_s = chart.pod(component)["terminationGracePeriodSeconds"]
    assert grace_s >= pause_s + config["timeouts"]["shutdown_s"] + 5


def test_ollama_starts_before_its_router_and_ends_after_it(chart: Rendered) -> None:
    """That is what a sidecar is: an init container that is always restarted."""
    assert chart.ollama()["restartPolicy"] == "Always"
    assert "Ollama" not in [container["name"] for container in chart.pod("node")["containers"]]


def test_nobody_but_its_router_reaches_ollama_s3(chart: Rendered) -> None:
    """It listens on the pod's loopback, has no port, and no service leads to it."""
    assert values_of(chart.ollama()["env"])["OLLAMA_HOST"] == "127.0.0.1:11434"
    assert "ports" not in chart.ollama()
    targets = {port["targetPort"] for service in chart.all("Service") for port in service["spec"]["ports"]}
    assert targets == {"api", "admin"}


def test_only_fronts_reach_nodes(chart: Rendered, case: str) -> None:
    """On the port for requests, by policy."""
    if case == "open":
        assert not chart.all("NetworkPolicy")
        return
    policy = chart.one("NetworkPolicy", "-node")["spec"]
    requests, *rest = policy["ingress"]
    assert policy["policyTypes"] == ["Ingress"]
    assert requests["ports"] == [{"port": 11435, "protocol": "TCP"}]
    (peer,) = requests["from"]
    assert peer.keys() == {"podSelector"}
    assert selects(peer["podSelector"]["matchLabels"], chart) == {"front"}
    assert all(rule["ports"] == [{"port": 11436, "protocol": "TCP"}] and rule["from"] for rule in rest)


def test_nodes_have_the_hash_and_fronts_the_key(of: Of) -> None:
    """So a node cannot speak to another one."""
    chart = of("defaults")
    items = {component: chart.volume(component, "key")["secret"]["items"] for component in COMPONENTS}
    assert items == {"front": [{"key": "key", "path": "key"}], "node": [{"key": "sha256", "path": "sha256"}]}
    data = chart.one("Secret")["stringData"]
    assert len(data["key"]) >= 32
    assert data["sha256"] == hashlib.sha256(data["key"].encode()).hexdigest()


def test_what_exists_is_used_and_not_made(of: Of) -> None:
    """An existing Secret, ConfigMap, registry and name."""
    chart = of("all that exists")
    assert not chart.all("Secret")
    assert {chart.volume(component, "key")["secret"]["secretName"] for component in COMPONENTS} == {"fleet-key"}
    assert {chart.volume(one, "teams")["configMap"]["name"] for one in COMPONENTS} == {"our-teams"}
    assert not [one for one in chart.all("ConfigMap") if one["metadata"]["name"].endswith("-teams")]
    assert {one["metadata"]["name"] for one in chart.objects} >= {"llm", "llm-nodes", "llm-front", "llm-node"}
    assert chart.pod("node")["imagePullSecrets"] == [{"name": "registry"}]
    assert chart.router("front")["image"].startswith("registry.example:5000/llm/router@sha256:")
    assert of("further volumes").router("node")["image"] == "ollama-router:0.1.1"


@pytest.mark.parametrize("component", COMPONENTS)
def test_paths_of_the_configuration_are_in_volumes(chart: Rendered, component: str) -> None:
    """What is read from there, and what is written: the root is read-only."""
    mounts = {one["mountPath"]: one for one in chart.router(component)["volumeMounts"]}
    names = {one["name"] for one in chart.pod(component).get("volumes", [])}
    names |= {one["metadata"]["name"] for one in chart.workload(component)["spec"].get("volumeClaimTemplates", [])}
    assert {one["name"] for one in mounts.values()} <= names
    assert len(names) == len({one["name"] for one in chart.pod(component)["volumes"]} | names)
    config = chart.plain(component)
    files = [config["store"]["path"], config.get("usage", {}).get("path")]
    assert {str(Path(path).parent) for path in files if path and path != ":memory:"} <= {"/var/lib/ollama-router"}
    assert "readOnly" not in mounts["/var/lib/ollama-router"]
    read = [part for part in chart.written(component).split() if part.startswith(MOUNTED)]
    assert {str(Path(path).parent) for path in read} <= mounts.keys()
    serves = " ".join([*chart.router(component).get("command", []), *chart.router(component).get("args", [])])
    assert f"serve --config {MOUNTED}/config/router.yaml" in serves


@pytest.mark.parametrize("component", COMPONENTS)
def test_selectors_select_their_own_pods(chart: Rendered, component: str) -> None:
    """Services, budgets, policies and spread; and a selector never has a version, so an upgrade can change it."""
    ours = [one for one in chart.objects if component_of(one) == component]
    selectors = [
        *(one["spec"]["selector"] for one in ours if one["kind"] == "Service"),
        *(one["spec"]["selector"]["matchLabels"] for one in ours if one["kind"] == "PodDisruptionBudget"),
        *(one["spec"]["podSelector"]["matchLabels"] for one in ours if one["kind"] == "NetworkPolicy"),
        chart.workload(component)["spec"]["selector"]["matchLabels"],
        *(one["labelSelector"]["matchLabels"] for one in chart.pod(component).get("topologySpreadConstraints", [])),
    ]
    assert len(selectors) >= 3
    assert [selects(selector, chart) for selector in selectors] == [{component}] * len(selectors)
    assert not any("version" in key or "chart" in key for selector in selectors for key in selector)


def test_fronts_are_several_on_several_machines(chart: Rendered) -> None:
    """And never all down at once by a drain or an upgrade."""
    assert chart.workload("front")["spec"]["replicas"] >= 2
    assert chart.workload("front")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert chart.one("PodDisruptionBudget", "-front")["spec"]["maxUnavailable"] == 1
    spread = {one["topologyKey"] for one in chart.pod("front")["topologySpreadConstraints"]}
    assert spread == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}


@pytest.mark.parametrize("component", COMPONENTS)
def test_health_is_asked_for_on_the_admin_address(chart: Rendered, component: str) -> None:
    """Both pages need no key."""
    container = chart.router(component)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"api": 11435, "admin": 11436}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "admin"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}


@pytest.mark.parametrize("component", COMPONENTS)
def test_memory_fits_the_limits_of_the_router(of: Of, component: str, tmp_path: Path) -> None:
    """All bodies, received and rewritten, and the rest."""
    limits = of("defaults").config(component, tmp_path).limits
    assert of("defaults").router(component)["resources"]["limits"]["memory"] == "2Gi"
    assert 2 * limits.buffered_bytes + (512 << 20) <= 2 << 30


def test_the_name_of_a_node_is_that_of_its_pod_or_machine(of: Of) -> None:
    """A pod of a StatefulSet has the same one again, one of a DaemonSet has not."""
    assert dict(of("defaults").fields("node")) == {"OLLAMA_ROUTER_NODE__NAME": "metadata.name"}
    assert dict(of("daemonset").fields("node")) == {"OLLAMA_ROUTER_NODE__NAME": "spec.nodeName"}


def test_fronts_find_nodes_by_the_headless_service(of: Of) -> None:
    """By its name or by its endpoints."""
    service = of("defaults").one("Service", "-nodes")
    assert service["spec"]["clusterIP"] == "None"
    name = service["metadata"]["name"]
    (backend,) = of("defaults").plain("front")["backends"].values()
    assert backend["discover"] == {"dns": f"{name}.llm.svc", "port": 11435}
    assert of("defaults").workload("node")["spec"]["serviceName"] == name
    (backend,) = of("endpointslices").plain("front")["backends"].values()
    assert backend["discover"] == {"endpointslices": "llm/ollama-router-nodes"}


def test_prometheus_reads_all_routers_with_a_key(of: Of) -> None:
    """Beyond loopback metrics need one."""
    chart = of("seen and reached")
    monitor = chart.one("ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    wanted = monitor["spec"]["selector"]["matchLabels"]
    chosen = [one for one in chart.all("Service") if wanted.items() <= one["metadata"]["labels"].items()]
    assert {component_of(one) for one in chosen} == {"front", "node"}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert all(endpoint["port"] in [port["name"] for port in one["spec"]["ports"]] for one in chosen)
    assert endpoint["authorization"]["credentials"] == {"name": "router-admin", "key": "key"}
    rules = [chart.one("NetworkPolicy", f"-{component}")["spec"]["ingress"] for component in COMPONENTS]
    assert all(rule[1]["ports"] == [{"port": 11436, "protocol": "TCP"}] for rule in rules)


def test_a_route_leads_to_fronts_which_take_its_names(of: Of) -> None:
    """Names beside it stay; the admin address is not published with a LoadBalancer."""
    chart = of("seen and reached")
    service = chart.one("Service", "fleet-ollama-router")
    (rule,) = chart.one("HTTPRoute")["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": 11434}]
    assert sorted(chart.plain("front")["hosts"]) == ["*.llm.example", "llm.example", "ollama.example"]
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["api"]
    assert [one for one in chart.all("Service") if one["spec"]["type"] != "ClusterIP"] == [service]


def selects(labels: dict[str, str], chart: Rendered) -> set[str]:
    """Return the components whose pods have these labels."""
    pods = {one: chart.workload(one)["spec"]["template"]["metadata"]["labels"] for one in COMPONENTS}
    return {component for component, has in pods.items() if labels.items() <= has.items()}
