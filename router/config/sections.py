"""The other sections: defaults, queue, switch, times, limits, telemetry, store.

A field's description is its documentation everywhere: `config/router.yaml`, `config/router.schema.json` and the
table in docs/configuration.md repeat it, and tests keep them equal.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool

from router.config.chain_sections import AutoChains
from router.config.names import Registry
from router.config.otlp import Otlp
from router.config.paths import FileName, StoreName
from router.config.section import Section
from router.config.values import (
    AtLeastOne,
    Count,
    Duration,
    KeepAlive,
    ModelRef,
    Positive,
)
from router.core.decision.chain_choices import Announce, NothingFits, Prefer, Upgrade
from router.core.teams.rights import DEFAULT_REGISTRIES
from router.core.teams.team import Permission


class Defaults(Section):
    auto_chains: AutoChains = "auto"
    """chain of a model without one: auto (other quantizations, then smaller ones of the series), quantizations, off"""
    nothing_fits: NothingFits = "refuse"
    """if none fits: refuse (503), wait (in the queue), allow_partial (the first may spill), passthrough (unchanged)"""
    num_ctx: AtLeastOne = 32768
    """largest context to use if neither request, chain nor Modelfile names one"""
    min_num_ctx: AtLeastOne = 8192
    """smallest context to use then; a variant that does not fit with it is skipped"""
    num_ctx_steps: Annotated[AtLeastOne, Field(multiple_of=256)] = 2048
    """contexts are rounded up to multiples of this, to avoid reloads"""
    max_num_ctx: AtLeastOne | None = None
    """largest context of any request; null = no limit"""
    answer_tokens: AtLeastOne = 2048
    """tokens of the context kept for an answer; a client's max_tokens or num_predict counts up to this"""
    upgrade: Upgrade = "on_request"
    """return to a bigger variant that fits again: idle (when the queue is empty), on_request (next request), never"""
    prefer: Prefer = "balanced"
    """quality (always the biggest that fits), balanced (not if memory came back just now), speed (what is loaded)"""
    max_load_wait_s: Duration = 60.0
    """longest load for a return to a bigger variant (balanced), and longest wait for a load of another client"""
    upgrade_after_s: Duration | None = None
    """balanced: how long memory must have been free before that; null = by the switch's cost, after returns in vain"""
    swaps_per_minute: AtLeastOne | None = None
    """balanced: at most this many returns to a bigger variant within a minute; null = no limit"""
    conversations: Count = 4096
    """conversations of which the model is remembered (by a hash), so that they keep it while it fits; 0 = of none"""
    response_model: Literal["served", "requested"] = "served"
    """model named in responses: served (the one that ran) or requested"""
    announce: Announce = "off"
    """line in front of an answer that names the variant and why: off, first (of a conversation), always"""
    derived_tags: StrictBool = True
    """create hidden tags so that /v1 requests run with the chosen context; false = with Ollama's automatic one"""
    keep: tuple[ModelRef, ...] = ()
    """models that are evicted last"""
    preload: tuple[ModelRef, ...] = ()
    """models or chains to load at start"""
    safety_mib: Count | None = None
    """VRAM kept free on top of the estimate, in MiB per card; null = by the uncertainty of the estimate"""
    keep_alive_s: KeepAlive = 300.0
    """how long an idle model stays loaded if the request does not set it"""
    max_keep_alive_s: KeepAlive | None = None
    """longest time a model stays loaded after its last request, except those of keep; null = no limit"""


class Switch(Section):
    settle_s: Duration = 0.6
    """pause between an unload and a load that would hide its memory from Ollama, if that stalls it for longer"""
    unload_timeout_s: Positive = 15.0
    """longest wait for an unload"""
    memory_timeout_s: Positive = 10.0
    """longest wait for the memory of an unloaded model to be free"""
    load_timeout_s: Positive = 330.0
    """longest load; Ollama itself gives up after 300 s without progress"""
    poll_s: Positive = 0.1
    """polling interval while waiting for an unload"""
    bar_s: Duration = 30.0
    """a model whose load failed is left alone for this long; its chain goes on without it"""
    away_pause_s: Positive = 8.0
    """longest pause before a load is tried again while Ollama cannot be reached; the first is 1 s, then it doubles"""
    contest_s: Duration = 60.0
    """after a sign that others load and unload on the same Ollama, models take turns for this long"""


class SnapshotTimes(Section):
    ps_interval_s: Positive = 1.0
    """polling interval of /api/ps"""
    fall: AtLeastOne = 3
    """failed readings of /api/ps in a row after which Ollama counts as away; a refused connection is enough"""
    rise: AtLeastOne = 3
    """good readings of /api/ps in a row, 0.1 s apart, after which one that was away counts as back"""
    probe_interval_s: Positive = 1.0
    """polling interval of free VRAM"""
    stale_after_s: Positive = 10.0
    """without a reading for this long, free memory counts as unknown and each load is verified"""
    catalog_interval_s: Positive = 30.0
    """polling interval of the list of installed models"""


class Timeouts(Section):
    header_s: Positive = 10.0
    """longest time to receive a request's header, and before it for a handshake of TLS"""
    body_idle_s: Positive = 30.0
    """longest pause while receiving a request's body"""
    body_total_s: Positive = 120.0
    """longest time to receive a JSON body"""
    keep_alive_s: Positive = 75.0
    """an idle client connection is closed after this time"""
    connect_s: Positive = 2.0
    """longest time to connect to Ollama"""
    link_s: Positive = 20.0
    """a connection to Ollama breaks off if its machine acknowledges nothing for this long (no power, no network)"""
    control_s: Positive = 10.0
    """longest time for a request of the router's own to Ollama (lists, versions, unloads), its whole answer included"""
    facts_s: Positive = 10.0
    """longest wait for Ollama to show a new model; after that it is sized by its download until Ollama does"""
    first_byte_s: Positive = 330.0
    """longest wait for the first byte of a response from Ollama"""
    stream_idle_s: Positive = 300.0
    """longest pause within a response from Ollama"""
    unwanted_s: Positive = 300.0
    """with suppress_cancel: keep draining a response for at most this long after its client disconnects"""
    write_idle_s: Positive = 300.0
    """a client that reads nothing for this long is disconnected"""
    shutdown_s: Positive = 30.0
    """at shutdown, longest time for running requests to finish"""


class Limits(Section):
    body_bytes: AtLeastOne = 64 << 20
    """largest JSON body; blobs are unlimited and streamed"""
    buffered_bytes: AtLeastOne = 512 << 20
    """largest sum of requests' bodies and clients' lists; one address leaves an eighth to others; beyond it a 503"""
    header_bytes: AtLeastOne = 64 << 10
    """largest request header; a node takes about 62 KiB more, for what its fronts say of a request"""
    headers: AtLeastOne = 128
    """most header fields in a request"""
    zstd_bytes: AtLeastOne = 20 << 20
    """largest zstd body, both as sent and after decompression"""
    inline_bytes: AtLeastOne = 256 << 10
    """larger bodies are read in a thread, so that they delay no other request"""
    body_values: AtLeastOne = 500_000
    """most JSON values in a body"""
    facts_bytes: AtLeastOne = 256 << 20
    """memory for what Ollama has shown of all models, 100 to 200 kB each; a model beyond it is sized by its download"""
    model_facts_bytes: AtLeastOne = 1 << 20
    """the same for one model"""
    line_bytes: AtLeastOne = 64 << 20
    """longest line or event of a stream from Ollama; a longer one ends the stream with an error"""
    connections: AtLeastOne = 2048
    """most client connections; beyond them the idle ones are closed, and if there are none a new one gets a 503"""
    connections_per_address: AtLeastOne = 2000
    """most of them from one address; a reverse proxy is one address"""
    pool: AtLeastOne = 256
    """most connections to Ollama for requests to models, and for what manages models"""
    pool_reserve: Count = 16
    """those of them that only clients with at most this many requests under way get; at most an eighth of pool"""
    list_pool: AtLeastOne = 16
    """most connections to Ollama for lists and metadata (/api/tags, /api/show, …); one address gets half of them"""
    unwanted_bytes: AtLeastOne = 64 << 20
    """with suppress_cancel: keep draining a response for at most this many bytes after its client disconnects"""
    control_bytes: AtLeastOne = 64 << 20
    """largest answer of Ollama to a request of the router's own"""


class Clients(Section):
    nothing_fits: tuple[NothingFits, ...] = ("refuse", "wait", "allow_partial", "passthrough")
    """rules that a request may choose by X-Router-Nothing-Fits; any other one is a 403"""
    keep_alive_forever: Permission = "allow"
    """an endless keep_alive (-1) of a request: allow, ignore (as if it named none), refuse (403)"""
    num_gpu: Permission = "allow"
    """num_gpu of a request, which puts layers on the CPU: allow, ignore (as if it named none), refuse (403)"""
    registries: tuple[Registry, ...] = DEFAULT_REGISTRIES
    """hosts of models that teams may pull, push, create and copy, as HOST or HOST:PORT; any other one is a 403"""
    remote_hosts: tuple[Registry, ...] = ()
    """servers on which models that teams create may run (remote_host of /api/create); any other one is a 403"""


class Tls(Section):
    cert: FileName | None = None
    """PEM file of the certificate that clients see, with its chain; null = no TLS; read again by a reload"""
    key: FileName | None = None
    """PEM file of its private key; null = it is in the same file"""
    admin: StrictBool | None = None
    """whether the admin address has it, too; null = if that is beyond loopback"""
    client_ca: FileName | None = None
    """PEM file of the authorities of clients' certificates: nobody connects without one; null = none is asked for"""


LogField = Literal[
    "ts",
    "level",
    "msg",
    "request_id",
    "team",
    "method",
    "route",
    "status",
    "requested",
    "variant",
    "backend",
    "reason",
    "queue_ms",
    "ttft_ms",
    "duration_ms",
    "tokens_in",
    "tokens_out",
    "bytes",
    "outcome",
    "trace_id",
    "error",
    "client",
    "key_id",
    "card_ms",
    "load_ms",
]


class TelemetrySection(Section):
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """lowest level that is logged (JSON lines on stderr, never a prompt)"""
    log_buffer_bytes: AtLeastOne = 4 << 20
    """most bytes of the log that wait for a slow reader; further lines are dropped and counted"""
    log_fields: tuple[LogField, ...] = ()
    """fields of a request's line in the log, in this order; [] = all"""
    headers: StrictBool = True
    """add X-Router-* headers to responses"""
    decisions_kept: AtLeastOne = 256
    """how many recent decisions /router/decisions keeps"""
    otlp: Otlp = Otlp()
    """traces of requests and loads, for a collector of OpenTelemetry"""


class Store(Section):
    path: StoreName | None = None
    """SQLite file of measured loads; null = $XDG_STATE_HOME/ollama-router/learned.sqlite; ":memory:" = no file"""
