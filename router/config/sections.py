"""The other sections: chains, defaults, queue, switch, times, limits, telemetry, store.

A field's description is its documentation everywhere: `config/router.yaml`, `config/router.schema.json` and the
README's table repeat it, and tests keep them equal.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool

from router.config.section import Section, ShortForm
from router.config.values import AtLeastOne, Count, Duration, KeepAlive, ModelRef, NumCtx, Positive, allowed

NothingFits = Literal["refuse", "wait", "allow_partial", "passthrough"]
Upgrade = Literal["idle", "on_request", "never"]
AutoChains = Literal["auto", "quantizations", "off"]


def _variant(value: object) -> object:
    if isinstance(value, (dict, VariantSection)):
        return value
    if isinstance(value, str):
        return {"model": value}
    raise allowed("a model name, or a mapping with model and num_ctx")


class VariantSection(Section):
    model: ModelRef
    """name of an installed model"""
    num_ctx: NumCtx = None
    """its context in tokens; max = the largest that fits; null = as the request says"""


VariantValue = Annotated[VariantSection, BeforeValidator(_variant), ShortForm({"type": "string", "minLength": 1})]


def _variants(value: object) -> object:
    if value in ("auto", "quantizations") or (isinstance(value, (list, tuple)) and value):
        return value
    raise allowed('"auto", "quantizations", or a list of at least one model')


def _chain(value: object) -> object:
    if isinstance(value, (dict, ChainSection)):
        return value
    if isinstance(value, (str, list, tuple)):
        return {"variants": value}
    raise allowed('"auto", "quantizations", a list of models, or a mapping with variants')


class ChainSection(Section):
    variants: Annotated[
        Literal["auto", "quantizations"] | tuple[VariantValue, ...],
        BeforeValidator(_variants),
    ]
    """models, biggest first; or auto, or quantizations (derived from what is installed)"""
    nothing_fits: NothingFits | None = None
    """as in defaults, for this chain"""
    upgrade: Upgrade | None = None
    """as in defaults, for this chain"""
    preload: StrictBool = False
    """load the biggest variant that fits at start"""


ChainValue = Annotated[ChainSection, BeforeValidator(_chain), ShortForm("variants")]


class Defaults(Section):
    auto_chains: AutoChains = "auto"
    """chain of a model that has none: auto (other quantizations, then its smaller relatives), quantizations, off"""
    nothing_fits: NothingFits = "refuse"
    """when none fits: refuse (503, why), wait (in line), allow_partial (the first may spill), passthrough (as it is)"""
    num_ctx: AtLeastOne = 32768
    """largest context given where neither request, chain nor Modelfile names one"""
    min_num_ctx: AtLeastOne = 8192
    """smallest context given there; below it the next variant is taken"""
    num_ctx_steps: Annotated[AtLeastOne, Field(multiple_of=256)] = 2048
    """contexts are rounded up to multiples of this, so that few reloads happen"""
    max_num_ctx: AtLeastOne | None = None
    """no request gets more context than this; null = no limit"""
    upgrade: Upgrade = "on_request"
    """back to a bigger variant that fits again: idle (by itself), on_request (with the next request), never"""
    upgrade_after_s: Duration = 60.0
    """memory must have been free for this long before a bigger variant is loaded into it"""
    swaps_per_minute: AtLeastOne = 4
    """after this many switches within a minute that unload something, no bigger variant replaces a smaller one"""
    response_model: Literal["served", "requested"] = "served"
    """the model named in answers: the one that served (the truth), or the one that was asked for"""
    derived_tags: StrictBool = True
    """make hidden tags so that /v1 requests run with the context that was decided; false: at Ollama's automatic one"""
    keep: tuple[ModelRef, ...] = ()
    """models that are unloaded last to make room"""
    preload: tuple[ModelRef, ...] = ()
    """models or chains that are loaded at start"""
    safety_mib: Count | None = None
    """VRAM kept free on top of the estimate, in MiB per card; null = as much as the estimate may be wrong"""
    keep_alive_s: KeepAlive = 300.0
    """how long an idle model stays loaded where the request does not say"""
    max_keep_alive_s: KeepAlive | None = None
    """no model stays loaded longer than this after its last request, but those of keep; null = no limit"""


class Queue(Section):
    max_waiting: AtLeastOne = 512
    """requests that may wait; the next one gets 503"""
    wait_s: Positive = 300.0
    """longest wait for a turn, then 503 with Retry-After; the load of the own model is not counted"""
    age_bound_s: Duration = 10.0
    """a request that waits longer than this goes before requests for the loaded model"""
    affinity_count: AtLeastOne = 16
    """requests for the loaded model that may pass one for another model"""


class Switch(Section):
    settle_s: Duration = 0.6
    """pause after an unload, because Ollama reads free memory late"""
    unload_timeout_s: Positive = 15.0
    """longest wait until an unloaded model is gone"""
    memory_timeout_s: Positive = 10.0
    """longest wait until its memory is free"""
    load_timeout_s: Positive = 330.0
    """longest load; Ollama itself gives up after 300 s without progress"""
    poll_s: Positive = 0.1
    """how often is looked while waiting"""


class SnapshotTimes(Section):
    ps_interval_s: Positive = 1.0
    """how often /api/ps is read"""
    probe_interval_s: Positive = 1.0
    """how often free VRAM is read"""
    stale_after_s: Positive = 10.0
    """with no reading for this long, memory counts as unknown and each load is verified"""
    catalog_interval_s: Positive = 30.0
    """how often the installed models are read"""


class Timeouts(Section):
    header_s: Positive = 10.0
    """a client must have sent its request's head within this time"""
    body_idle_s: Positive = 30.0
    """longest pause within a request's body"""
    body_total_s: Positive = 120.0
    """longest time for a JSON body"""
    keep_alive_s: Positive = 75.0
    """an idle client connection is closed after this time"""
    connect_s: Positive = 2.0
    """connecting to Ollama"""
    first_byte_s: Positive = 330.0
    """until Ollama begins to answer"""
    stream_idle_s: Positive = 300.0
    """longest pause within an answer of Ollama"""
    unwanted_s: Positive = 300.0
    """with suppress_cancel: so long is an answer read whose client has left at most"""
    write_idle_s: Positive = 300.0
    """a client that takes nothing for this long is dropped"""
    shutdown_s: Positive = 30.0
    """running requests may take this long to end at shutdown"""


class Limits(Section):
    body_bytes: AtLeastOne = 64 << 20
    """largest JSON body; blobs are unlimited and streamed"""
    header_bytes: AtLeastOne = 64 << 10
    """largest head of a request"""
    headers: AtLeastOne = 128
    """most header lines of a request"""
    zstd_bytes: AtLeastOne = 20 << 20
    """largest body after decompression"""
    connections: AtLeastOne = 2048
    """most client connections"""
    pool: AtLeastOne = 256
    """most connections to Ollama"""
    unwanted_bytes: AtLeastOne = 64 << 20
    """with suppress_cancel: so much of an answer whose client has left is read at most"""


class TelemetrySection(Section):
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """what is logged (JSON lines on stderr, never a prompt)"""
    headers: StrictBool = True
    """X-Router-* headers on answers"""
    decisions_kept: AtLeastOne = 256
    """recent decisions kept for /router/decisions"""


class Store(Section):
    path: str | None = None
    """SQLite file for what was learned; null = $XDG_STATE_HOME/ollama-router/learned.sqlite; ":memory:" = no file"""
