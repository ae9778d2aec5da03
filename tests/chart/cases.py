"""The values for which the chart is rendered, and what it made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from router.config import Config, load_config

PAGE = Path(__file__).parent.parent.parent / "docs/kubernetes.md"
MOUNTED = "/etc/ollama-router"
ADMIN_KEY = "test"
KEY_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
TEAM_SHA256, FRONT_SHA256 = "7c" * 32, "3e" * 32
AWKWARD = [
    "y",
    "on",
    "null",
    "1e3",
    "0x1f",
    "1_000",
    "12:30:00",
    "~",
    "# none",
    "a: b",
    '"',
    "'",
    "{{ .Values }}",
    "é\\n",
]
"""Strings that YAML without quotes takes for something else."""

_PROMETHEUS = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
_PARENTS = [{"name": "public", "namespace": "gateways", "sectionName": "https"}]
_TEAM = {"team": "coding", "keys": [{"id": "ci", "sha256": TEAM_SHA256}], "share": 2.0, "limits": {"concurrent": 4}}

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "daemonset": {
        "node": {
            "kind": "DaemonSet",
            "storage": {"kind": "hostPath", "path": "/srv/ollama"},
            "gpu": {"count": 8, "runtimeClassName": "nvidia"},
            "nodeSelector": {"nvidia.com/gpu.present": "true"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "priorityClassName": "gpu",
        }
    },
    "no GPU": {"node": {"gpu": {"count": 0}, "storage": {"kind": "emptyDir"}, "replicas": 1}},
    "AMD": {"node": {"gpu": {"resource": "amd.com/gpu"}, "supplementalGroups": [44, 109]}},
    "endpointslices": {"discovery": "endpointslices", "front": {"replicas": 5}},
    "teams and chains": {
        "chains": {"chat": ["qwen3:32b", {"model": "qwen3:8b", "num_ctx": 8192}], "qwen3:*": "quantizations"},
        "teams": {"coding": _TEAM, "web": {"team": "web", "from": ["10.0.0.0/8"]}},
        "front": {"config": {"default_team": "web", "limits": {"body_bytes": 134217728}}},
    },
    "all that exists": {
        "fullnameOverride": "llm",
        "nodeKey": {"existingSecret": "fleet-key"},
        "existingTeams": "our-teams",
        "image": {"repository": "registry.example:5000/llm/router", "digest": f"sha256:{KEY_SHA256}"},
        "imagePullSecrets": [{"name": "registry"}],
    },
    "seen and reached": {
        "adminKeys": [{"id": "ops", "sha256": KEY_SHA256}],
        "serviceMonitor": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "keySecret": {"name": "router-admin", "key": "key"},
        },
        "httpRoute": {"enabled": True, "parentRefs": _PARENTS, "hostnames": ["llm.example", "*.llm.example"]},
        "networkPolicy": {"admin": _PROMETHEUS, "clients": [{"podSelector": {}}]},
        "front": {
            "service": {"type": "LoadBalancer", "port": 11434, "annotations": {"example.com/internal": "true"}},
            "config": {"trusted_proxies": ["10.0.0.0/8"], "hosts": ["ollama.example"]},
        },
    },
    "shared limits and usage": {
        "front": {
            "replicas": 3,
            "config": {
                "shared": {"valkey": "valkeys://valkey.llm.svc:6379", "password_file": "/run/secrets/valkey/password"},
                "usage": {"postgres_file": "/run/secrets/usage/url"},
            },
            "extraVolumes": [
                {"name": "valkey", "secret": {"secretName": "valkey"}},
                {"name": "usage", "secret": {"secretName": "usage"}},
            ],
            "extraVolumeMounts": [
                {"name": "valkey", "mountPath": "/run/secrets/valkey", "readOnly": True},
                {"name": "usage", "mountPath": "/run/secrets/usage", "readOnly": True},
            ],
        }
    },
    "open": {"networkPolicy": {"enabled": False}, "listenAddress": "[::]"},
    "settings of Ollama": {
        "node": {
            "server": {
                "num_parallel": 4,
                "kv_type": "q8_0",
                "flash_attention": "on",
                "context_length": 16384,
                "gpu_overhead_mib": 512,
                "sched_spread": True,
                "fit_target_mib": 256,
                "max_loaded_models": 3,
            },
            "backend": {"gpus": ["GPU-6b6b"], "probe": {"kind": "prometheus", "url": "http://dcgm:9400/metrics"}},
            "ollama": {"env": {"OLLAMA_KEEP_ALIVE": "1h"}, "resources": {"limits": {"memory": "64Gi"}}},
        }
    },
    "further volumes": {
        part: {
            "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca", "readOnly": True}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}}},
            "image": {"tag": "0.1.1"},
        }
        for part in ("front", "node")
    },
    "awkward strings": {
        "image": {"repository": "null", "tag": "1.10"},
        "front": {"env": dict(zip("ABCDEFGHIJKLMN", AWKWARD, strict=True)), "podAnnotations": {"y": "on"}},
        "node": {"podLabels": {"on": "off"}, "nodeSelector": {"y": "1e3"}, "storage": {"storageClass": "no"}},
        "chains": {"y": ["on:off", "1e3", "null:null"]},
        "teams": {"1e3": {"team": "on", "chains": {"null": ["y:n"]}}},
    },
}  # fmt: skip
CASES |= {
    f"documented {number}": YAML(typ="safe", pure=True).load(text)
    for number, text in enumerate(re.findall(r"^```yaml\n(.*?)```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
}
LONG = "a-release-with-the-longest-name-that-helm-accepts-53c"
RELEASES = {"AMD": LONG, "endpointslices": "ollama-router"}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one front": ({"front": {"replicas": 1}}, "/front/replicas"),
    "a key that there is not": ({"front": {"replica": 2}}, "replica"),
    "a number for a tag": ({"image": {"tag": 1.10}}, "/image/tag"),
    "another workload": ({"node": {"kind": "Deployment"}}, "/node/kind"),
    "what the chart decides": ({"node": {"config": {"listen": "0.0.0.0:1"}}}, "/node/config/listen"),
    "another Ollama": ({"node": {"backend": {"url": "http://10.0.0.7:11434"}}}, "/node/backend/url"),
    "an Ollama for everybody": (
        {"node": {"ollama": {"env": {"OLLAMA_HOST": "0.0.0.0"}}}},
        "/node/ollama/env/OLLAMA_HOST",
    ),
    "a key as it is": ({"adminKeys": [{"id": "ops", "sha256": "secret"}]}, "/adminKeys/0/sha256"),
    "Prometheus without a key": ({"serviceMonitor": {"enabled": True}}, "keySecret"),
    "a route to nowhere": ({"httpRoute": {"enabled": True}}, "parentRefs"),
    "a claim for a DaemonSet": ({"node": {"kind": "DaemonSet"}}, "hostPath or emptyDir"),
    "a folder without a name": ({"node": {"storage": {"kind": "hostPath"}}}, "/node/storage/path"),
}


@dataclass(frozen=True)
class Rendered:
    """The objects of one case."""

    objects: list[dict[str, Any]]

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind: str, ending: str = "") -> dict[str, Any]:
        """Return the only object of a kind whose name ends so."""
        (found,) = [one for one in self.all(kind) if one["metadata"]["name"].endswith(ending)]
        return found

    def workload(self, component: str) -> dict[str, Any]:
        """Return the workload of "front" or "node"."""
        (found,) = [
            one
            for one in self.objects
            if one["kind"] in ("Deployment", "StatefulSet", "DaemonSet") and component_of(one) == component
        ]
        return found

    def pod(self, component: str) -> dict[str, Any]:
        """Return the pod's specification."""
        found: dict[str, Any] = self.workload(component)["spec"]["template"]["spec"]
        return found

    def router(self, component: str) -> dict[str, Any]:
        """Return the router's container."""
        (found,) = self.pod(component)["containers"]
        assert isinstance(found, dict)
        return found

    def ollama(self) -> dict[str, Any]:
        """Return Ollama's container."""
        (found,) = self.pod("node")["initContainers"]
        assert isinstance(found, dict)
        return found

    def written(self, component: str) -> str:
        """Return the text of router.yaml."""
        text: str = self.one("ConfigMap", f"-{component}")["data"]["router.yaml"]
        return text

    def plain(self, component: str) -> Any:
        return YAML(typ="safe", pure=True).load(self.written(component))

    def config(self, component: str, folder: Path) -> Config:
        """Lay out the pod's files below a folder and load its configuration."""
        for name in ("config", "key", "teams"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "key" / "key").write_text("a-key")
        (folder / "key" / "sha256").write_text(FRONT_SHA256)
        for one in self.all("ConfigMap"):
            if one["metadata"]["name"].endswith("-teams"):
                for name, text in one["data"].items():
                    (folder / "teams" / name).write_text(text)
        if not list((folder / "teams").iterdir()):
            (folder / "teams/existing.yaml").write_text("team: existing")
        file = folder / "config" / "router.yaml"
        file.write_text(self.written(component).replace(MOUNTED, str(folder)))
        return load_config(file, env={name: "pod-0" for name, _ in self.fields(component)})

    def volume(self, component: str, name: str) -> dict[str, Any]:
        """Return a volume of a pod."""
        (found,) = [one for one in self.pod(component)["volumes"] if one["name"] == name]
        assert isinstance(found, dict)
        return found

    def fields(self, component: str) -> Iterator[tuple[str, str]]:
        """Yield each environment variable that is a field of the pod, and the field."""
        for one in self.router(component).get("env", []):
            if "valueFrom" in one:
                yield one["name"], one["valueFrom"]["fieldRef"]["fieldPath"]


def component_of(one: dict[str, Any]) -> str:
    return str(one["metadata"]["labels"]["app.kubernetes.io/component"])


def values_of(env: list[dict[str, Any]]) -> dict[str, str]:
    """Return environment variables as a mapping."""
    return {one["name"]: one["value"] for one in env if "value" in one}
