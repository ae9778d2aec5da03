"""The backend's sections: where the Ollama server is, how its free VRAM is read, how it is set up.

A field's description is its documentation everywhere: `config/router.yaml`, `config/router.schema.json` and the
table in docs/configuration.md repeat it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import StrictBool, model_validator

from router.config.discover import Discover
from router.config.paths import FileName
from router.config.section import Section
from router.config.values import AtLeastOne, Count, Duration, Gpus, Positive, Url, allowed

ProbeKind = Literal["auto", "nvml", "command", "prometheus", "amd", "static", "none"]
KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


class StaticGpu(Section):
    name: str = "GPU"
    """name of the card in explanations"""
    total_mib: AtLeastOne
    """its total memory in MiB"""
    free_mib: Count | None = None
    """its free memory in MiB with no model loaded; null = total_mib"""


class Probe(Section):
    kind: ProbeKind = "auto"
    """how free VRAM is read: auto (NVML, else AMD sysfs, else none), nvml, command, prometheus, amd, static, none"""
    command: tuple[str, ...] = ()
    """for command: prints nvidia-smi's CSV, as [ssh, gpu1, nvidia-smi]; the query is appended to a final nvidia-smi"""
    url: str | None = None
    """for prometheus: URL of the metrics (with the names of DCGM exporter)"""
    root: FileName = "/"
    """for amd: the directory that contains sys/class/drm"""
    gpus: tuple[StaticGpu, ...] = ()
    """for static: the cards to assume"""
    cache_s: Duration = 1.0
    """for command: how long a reading is reused"""
    timeout_s: Positive = 0.25
    """timeout of a reading; at least 5 for command, 2 for prometheus"""
    max_bytes: AtLeastOne = 1 << 20
    """for command and prometheus: largest output or page; a longer one is not read"""
    reserve_mib: Count = 2048
    """for memory shared with the CPU (AMD APU, GB10, Jetson): MiB of it kept for the host"""

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Probe:
        needed = {"command": self.command, "prometheus": self.url, "static": self.gpus}
        if self.kind in needed and not needed[self.kind]:
            key = {"command": "command", "prometheus": "url", "static": "gpus"}[self.kind]
            raise allowed(f'kind "{self.kind}" together with the key {key}')
        return self


class ServerSection(Section):
    auto: StrictBool = True
    """go by what loads show where it differs from the keys below; false = by these keys alone"""
    num_parallel: AtLeastOne = 1
    """OLLAMA_NUM_PARALLEL of this server"""
    kv_type: KvType = "f16"
    """OLLAMA_KV_CACHE_TYPE of this server"""
    flash_attention: Literal["auto", "on", "off"] = "auto"
    """OLLAMA_FLASH_ATTENTION of this server; auto = not set"""
    context_length: AtLeastOne | None = None
    """OLLAMA_CONTEXT_LENGTH of this server; null = not set"""
    gpu_overhead_mib: Count = 0
    """OLLAMA_GPU_OVERHEAD of this server, in MiB"""
    sched_spread: StrictBool = False
    """OLLAMA_SCHED_SPREAD of this server"""
    fit_target_mib: Count | None = None
    """LLAMA_ARG_FIT_TARGET of this server, in MiB per card; null = not set (1024)"""
    max_loaded_models: AtLeastOne | None = None
    """OLLAMA_MAX_LOADED_MODELS of this server; null = not set. If loads show fewer, that counts"""


class BackendSection(Section):
    kind: Literal["ollama", "node"] = "ollama"
    """ollama; or node, for the nodes of a front, which has no other backend"""
    key_file: FileName | None = None
    """for node: file with the key that the nodes know by its hash; read again by a reload"""
    discover: Discover = Discover()
    """for node: where the nodes are"""
    url: Url = "http://127.0.0.1:11434"
    """URL of the Ollama server: http or https, perhaps with a path that is put in front of Ollama's own"""
    ca: FileName | None = None
    """for https: PEM file of the authorities that its certificate may be from; null = the system's"""
    client_cert: FileName | None = None
    """for https: PEM file of the certificate that the router shows, if asked; null = none; read again by a reload"""
    client_key: FileName | None = None
    """PEM file of its private key; null = it is in the same file"""
    bearer_file: FileName | None = None
    """file with a token that the router sends as Authorization: Bearer; read again by a reload"""
    basic_file: FileName | None = None
    """file with user:password that the router sends as Authorization: Basic; read again by a reload"""
    gpus: Gpus = "auto"
    """its cards: auto (all that the probe lists), none (CPU only), or indexes or UUIDs in the order of its Ollama"""
    probe: Probe = Probe()
    """how its free VRAM is read"""
    suppress_cancel: StrictBool = False
    """keep reading a response after its client disconnects, for a server that crashes when a request is aborted"""
    server: ServerSection = ServerSection()
    """how this server is set up: its environment variables that affect memory"""

    @property
    def is_nodes(self) -> bool:
        """True if these are nodes and not an Ollama."""
        return self.kind == "node"

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> BackendSection:
        if not self.is_nodes:
            if self.key_file is not None or self.discover.ways:
                raise allowed("key_file and discover together with kind: node")
            return self
        if self.key_file is None or not self.discover.ways:
            raise allowed("kind: node together with key_file, and static, dns or endpointslices in discover")
        if (self.ca or self.client_cert) and not self.discover.is_tls:
            raise allowed("ca and client_cert together with discover.tls_name, or with https: in discover.static")
        if foreign := sorted(_OF_AN_OLLAMA & self.model_fields_set):
            raise allowed(f"kind: node without {', '.join(foreign)}, which each node has for its own Ollama")
        return self

    @model_validator(mode="after")
    def _has_one_way_to_authenticate(self) -> BackendSection:
        if self.bearer_file is not None and self.basic_file is not None:
            raise allowed("one of bearer_file and basic_file")
        if self.client_key is not None and self.client_cert is None:
            raise allowed("client_key together with client_cert")
        return self


_OF_AN_OLLAMA = frozenset({"url", "bearer_file", "basic_file", "gpus", "probe", "suppress_cancel", "server"})
"""The keys of an Ollama, which a front has none of."""
