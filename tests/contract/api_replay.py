"""Replay of one recorded conversation against a base URL: the same requests with the same order and overlap."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ollama_simulator.gojson import dump
from ollama_simulator.http.faults import FaultBook
from ollama_simulator.machine.spec import Machine, Speeds
from ollama_simulator.models.installed import MEDIA, Layer, extra_layers, installed, layer
from ollama_simulator.models.library import Library, tiny_library
from ollama_simulator.models.registry import Registry
from ollama_simulator.recorded.scenario import seconds
from ollama_simulator.server import SimConfig, SimulatedOllama
from router.core.ollama.names import ModelName
from router.core.ollama.options import ServerSettings
from router.errors import BadRequest
from tests.contract.api_client import Client, Reply, request_body
from tests.contract.api_normal import is_sampled, normal, recorded
from tests.contract.api_registry import registry_of

DATA = Path(__file__).parent.parent / "data" / "api"
# The recording machine: no card, a CPU that reads about 8 GB/s of weights, a disk of 120 MiB/s.
MACHINE = Machine(
    cards=(), speeds=Speeds(load_mib_per_s=120, cpu_gb_per_s=8, prompt_tokens_per_s=500), reply_tokens=100_000
)


@dataclass(frozen=True)
class Outcome:
    """The result for one transcript; `difference` is empty if it agrees."""

    id: str
    group: str
    difference: str


def transcripts(folder: Path | None = None) -> Iterator[dict[str, Any]]:
    """All recordings of a folder, plain or gzipped JSON lines."""
    folder = folder or DATA
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")]):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        yield from (json.loads(line) for line in raw.decode().splitlines() if line)


def settings_of(transcript: dict[str, Any]) -> tuple[ServerSettings, tuple[str, ...], bool]:
    """Return the server's settings, additional origins, and whether the cloud is disabled."""
    env = transcript.get("server_env") or {}
    settings = ServerSettings()
    if "OLLAMA_MAX_LOADED_MODELS" in env:
        settings = replace(settings, max_loaded_models=int(env["OLLAMA_MAX_LOADED_MODELS"]))
    if "OLLAMA_MAX_QUEUE" in env:
        settings = replace(settings, max_queue=int(env["OLLAMA_MAX_QUEUE"]))
    if "OLLAMA_CONTEXT_LENGTH" in env:
        settings = replace(settings, context_length=int(env["OLLAMA_CONTEXT_LENGTH"]))
    if "OLLAMA_KEEP_ALIVE" in env:
        settings = replace(settings, keep_alive_s=seconds(env["OLLAMA_KEEP_ALIVE"]))
    if "OLLAMA_NUM_PARALLEL" in env:
        settings = replace(settings, num_parallel=int(env["OLLAMA_NUM_PARALLEL"]))
    origins = tuple(part for part in env.get("OLLAMA_ORIGINS", "").split(",") if part)
    return settings, origins, env.get("OLLAMA_NO_CLOUD") != "0"


def config_of(transcript: dict[str, Any], registry: Callable[[], Registry] | None = None) -> SimConfig:
    """Run a simulator in the state of the recorded server, as far as it is known."""
    settings, origins, cloud_disabled = settings_of(transcript)
    library = library_of(transcript)
    start = datetime.fromisoformat("2026-11-23T01:00:00+00:00")

    def now() -> datetime:
        return start + timedelta(seconds=asyncio.get_running_loop().time())

    return SimConfig(
        library=library,
        machine=replace(MACHINE, has_amx=transcript.get("has_amx", True)),
        settings=settings,
        origins=origins,
        cloud_disabled=cloud_disabled,
        remotes=tuple((transcript.get("server_env") or {}).get("OLLAMA_REMOTES", "ollama.com").split(",")),
        now=now,
        registry=registry() if registry else registry_of(transcript, library),
    )


def library_of(transcript: dict[str, Any]) -> Library:
    """Return the recording's models. Those left by an earlier conversation are inferred from the responses."""
    library = tiny_library()
    first = next(iter(_rows(transcript, "/api/tags")), None)
    if first == [] or "tags-none" in transcript["id"]:
        return Library()
    for name in transcript.get("weights_gone") or ():
        _harm_weights(library, library.models[ModelName.parse(name).key].weights.digest, is_gone=True)
    for name, harm in (transcript.get("weights_harmed") or {}).items():
        _harm_weights(library, library.models[ModelName.parse(name).key].weights.digest, **harm)
    for name, kind in (transcript.get("blobs_lost") or {}).items():
        model = library.models[ModelName.parse(name).key]
        library.lost.add(next(item.digest for item in (*model.layers, model.config) if item.media.endswith(kind)))
    for name in transcript.get("models_absent") or ():
        library.models.pop(ModelName.parse(name).key)
    made: set[str] = set()
    for step in transcript["steps"]:
        _infer(library, step, made)
    return library


def _infer(library: Library, step: dict[str, Any], made: set[str]) -> None:
    request, response = step["request"], step["response"]
    target = _target(request)
    target = target[target.find("/api/") :]
    body = _json(request_body(request))
    if not response or not isinstance(body, dict):
        return
    if target == "/api/create":
        for digest in re.findall(r"using existing layer (sha256:[0-9a-f]{64})", _body(response).decode()):
            library.blobs.setdefault(digest, None)
    made.update(key for name in ("destination", "model", "name") if (key := _made(target, body.get(name))))
    named = body.get("model") or body.get("name") or body.get("source")
    cut = re.search(rb"exceeds file size \((\d+)\)", _body(response))
    if cut and isinstance(named, str) and library.find(named) is None:
        whole = library.models[ModelName.parse("tiny-plain").key]
        weights = replace(whole.weights, digest=f"sha256:{'c' * 64}", file_bytes=int(cut[1]))
        library.add(installed(ModelName.parse(named), weights, whole.layers[1:], whole.modified_at))
    if _LACKS_ALL.search(_body(response)) and isinstance(named, str) and library.find(named) is None:
        whole = library.models[ModelName.parse("tiny-plain").key]
        weights = replace(whole.weights, digest=f"sha256:{'d' * 64}", is_gone=True)
        library.add(installed(ModelName.parse(named), weights, whole.layers[1:], whole.modified_at))
    if response["status"] != 200 or not isinstance(named, str) or target not in KNOWING:
        return
    name = ModelName.parse(named)
    if name.key in made or library.get(name) is not None:
        return
    shown = _json(_body(response)) if target == "/api/show" else {}
    library.add(_inferred(library, name, shown or {}))


_LACKS_ALL = re.compile(rb'\\"? does not support (chat|generate)')
"""Said of a model that is installed but lacks its weights (or is an embedding model)."""


def _harm_weights(library: Library, digest: str, **harm: Any) -> None:
    """Remove or damage a file of weights on the disk of the simulated server: its tags stay."""
    for model in list(library.models.values()):
        if model.weights.digest == digest:
            weights = replace(model.weights, **harm)
            library.add(
                installed(
                    model.name, weights, model.layers, model.modified_at, parent=model.parent, config=model.config
                )
            )


KNOWING = ("/api/show", "/api/generate", "/api/chat", "/api/embed", "/api/delete", "/api/copy")
"""Routes whose 200 implies that the model is installed."""


def _made(target: str, name: Any) -> str:
    if target not in ("/api/create", "/api/copy", "/api/pull") or not isinstance(name, str) or not name:
        return ""
    try:
        return ModelName.parse(name).key
    except BadRequest:
        return ""


def _inferred(library: Library, name: ModelName, shown: dict[str, Any]) -> Any:
    base = library.models[ModelName.parse("tiny-plain").key]
    weights = base.weights
    blob = (shown.get("modelfile") or "").partition("/blobs/sha256-")[2][:64]
    for model in library.models.values():
        if blob and model.weights.digest.endswith(blob):
            weights = model.weights
    template = shown.get("template", base.template)
    layers = [Layer(MEDIA + "model", weights.digest, weights.size_bytes), layer("template", template.encode())]
    entry = {key: shown.get(key) for key in ("system", "messages")}
    layers += extra_layers({**entry, "parameters": _parameters(shown), "licenses": []})
    at = datetime.fromisoformat("2026-11-23T00:59:00+00:00")
    return installed(name, weights, layers, at, parent=(shown.get("details") or {}).get("parent_model", ""))


def _parameters(shown: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in (shown.get("parameters") or "").splitlines():
        key, _, value = line.partition(" ")
        parsed = json.loads(value.strip())
        found[key] = [*found.get(key, []), parsed] if key == "stop" else parsed
    return found


def _target(request: dict[str, Any]) -> str:
    return str(request.get("target") or "").partition("?")[0]


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None


def _body(response: dict[str, Any]) -> bytes:
    reply = recorded(response)
    assert reply is not None
    return b"".join(reply.chunks) or reply.body


def _rows(transcript: dict[str, Any], target: str) -> Iterator[list[Any]]:
    for step in transcript["steps"]:
        if _target(step["request"]).endswith(target) and step["response"] and step["response"]["status"] == 200:
            value = _json(_body(step["response"]))
            if isinstance(value, dict):
                yield value.get("models") or []


def resident_before(transcript: dict[str, Any]) -> list[str]:
    """Models loaded ahead of the conversation: recorded as such, or in the first `/api/ps` without a load."""
    if transcript.get("loaded_before") is not None:
        return list(transcript["loaded_before"])
    loading: set[str] = set()
    for step in transcript["steps"]:
        target = _target(step["request"])
        if target == "/api/ps" and step["response"]:
            rows = (_json(_body(step["response"])) or {}).get("models") or []
            return [row["name"] for row in rows if ModelName.parse(row["name"]).key not in loading]
        body = _json(request_body(step["request"]))
        if isinstance(body, dict) and isinstance(body.get("model"), str) and body["model"]:
            try:
                loading.add(ModelName.parse(body["model"]).key)
            except BadRequest:
                continue
    return []


async def prepare(transcript: dict[str, Any], url: str) -> None:
    """Load the models that were loaded ahead of the conversation."""
    for name in resident_before(transcript):
        body = dump({"model": name, "prompt": ""}) if "embed" not in name else dump({"model": name, "input": []})
        target = "/api/generate" if "embed" not in name else "/api/embed"
        head = [["Host", "127.0.0.1"], ["Content-Length", str(len(body))]]
        request = {"method": "POST", "target": target, "headers": head, "body": body.decode()}
        await Client(url).exchange({"request": request})


def prefix_of(transcript: dict[str, Any]) -> str:
    """Return the path prefix that the recorder's proxy removed, or ""."""
    for step in transcript["steps"]:
        match = re.match(r"(/t/[^/]+)/", _target(step["request"]))
        if match and step["response"] and step["response"]["status"] != 404:
            return match[1]
    return ""


Kill = Callable[[str], None]


async def replay(
    transcript: dict[str, Any], url: str, kill: Kill | None = None, *, through_proxy: bool = False
) -> Outcome:
    """Send all steps to `url`, already prepared, and compare every response. `kill` ends a model's runner where the
    recorder did."""
    steps = transcript["steps"]
    prefix = prefix_of(transcript)
    loop = asyncio.get_running_loop()
    began: list[float] = [0.0] * len(steps)
    tasks: list[asyncio.Task[tuple[Reply | None, float]]] = []
    for number, step in enumerate(steps):
        await _turn(steps, number, tasks, began)
        if kill is not None and number and "killed" in transcript["id"]:
            await prepare(transcript, url)
        began[number] = loop.time()
        tasks.append(asyncio.create_task(_play(Client(url, prefix), steps, number)))
        if kill is not None and "killed" in transcript["id"]:
            _kill_later(step, kill)
    replies = [(await task)[0] for task in tasks]
    parts = [
        difference
        for number, reply in enumerate(replies)
        if (difference := _compare(transcript, number, reply, through_proxy))
    ]
    return Outcome(transcript["id"], transcript["group"], "\n".join(parts))


def _kill_later(step: dict[str, Any], kill: Kill) -> None:
    body = _json(request_body(step["request"]))
    end_ms = (step["response"] or {}).get("end_ms")
    if isinstance(body, dict) and body.get("model") and end_ms:
        asyncio.get_running_loop().call_later((end_ms - 30) / 1000, kill, body["model"])


async def _play(client: Client, steps: list[dict[str, Any]], number: int) -> tuple[Reply | None, float]:
    step = steps[number]
    hang_up = None
    if step.get("client_hung_up"):
        later = [other["at_ms"] for other in steps[number + 1 :] if other["at_ms"] > step["at_ms"]]
        end = (step["response"] or {}).get("end_ms")
        hang_up = (end if end is not None else min([*later, step["at_ms"] + 400]) - step["at_ms"] - 5) / 1000
    try:
        reply = await client.exchange(step, hang_up)
    except (ConnectionError, asyncio.IncompleteReadError):
        reply = None
    return reply, asyncio.get_running_loop().time()


def _end_ms(step: dict[str, Any]) -> float:
    return float(step["at_ms"] + ((step["response"] or {}).get("end_ms") or 0))


async def _turn(
    steps: list[dict[str, Any]], number: int, tasks: list[asyncio.Task[tuple[Reply | None, float]]], began: list[float]
) -> None:
    """Wait as long as the recorded client did: since the ends of earlier steps and since their starts."""
    at = steps[number]["at_ms"]
    due = 0.0
    for other, task in enumerate(tasks):
        gap_ms = at - _end_ms(steps[other])
        if gap_ms >= 0:
            _, ended = await task
            due = max(due, ended + gap_ms / 1000)
        else:
            due = max(due, began[other] + (at - steps[other]["at_ms"]) / 1000)
    delay = due - asyncio.get_running_loop().time()
    if tasks and delay > 0:
        await asyncio.sleep(delay)


def _compare(transcript: dict[str, Any], number: int, reply: Reply | None, through_proxy: bool) -> str:
    step = transcript["steps"][number]
    sampled = is_sampled(request_body(step["request"]))
    if step.get("client_hung_up"):
        return ""
    wanted = normal(recorded(step["response"]), sampled=sampled, through_proxy=through_proxy)
    if transcript["group"] == "cli-errors" and reply is not None:
        reply.headers.append(("Server", ""))
    found = normal(reply, sampled=sampled, through_proxy=through_proxy)
    if wanted == found:
        return ""
    for left, right in zip([*wanted, "<end>"], [*found, "<end>"], strict=False):
        if left != right:
            at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), 0)
            cut = max(0, at - 60)
            return f"step {number}: recorded …{left[cut : at + 160]!r}, got …{right[cut : at + 160]!r}"
    return f"step {number}: {len(wanted)} lines recorded, {len(found)} received"


def order_stub(transcript: dict[str, Any], faults: FaultBook) -> None:
    """Make the simulator send the responses of the stub server that was recorded in `cli-errors`."""
    for step in transcript["steps"]:
        reply = recorded(step["response"])
        if reply is None:
            continue
        skipped = ("date", "content-length", "transfer-encoding", "connection")
        headers = [(name, value) for name, value in reply.headers if name.lower() not in skipped]
        chunks = [chunk.decode() for chunk in reply.chunks] if reply.framing == "chunked" else []
        length = int(reply.header("Content-Length") or 0)
        is_head = step["request"]["method"] == "HEAD"
        if is_head and not length:
            headers.append(("Content-Length", "0"))
        faults.add(
            "answer",
            route=_target(step["request"]),
            method=step["request"]["method"],
            status=reply.status,
            headers=headers,
            body="x" * length if is_head else reply.body.decode(),
            chunks=chunks,
        )


def killer(server: SimulatedOllama) -> Kill:
    """Return a function that kills the runner of a model by name."""

    def kill(name: str) -> None:
        model = server.library.find(name)
        if model is not None and model.sim is not None:
            server.engine.kill_runner(model.sim)

    return kill


Front = Callable[[str, dict[str, Any]], AbstractAsyncContextManager[str]]


async def against_simulator(transcript: dict[str, Any], front: Front | None = None) -> Outcome:
    """Replay one transcript against a fresh simulator. `front` may put a router in front of it: it gets the simulator's
    URL and the transcript, and returns the URL for the requests."""
    server = SimulatedOllama(config_of(transcript))
    await server.start()
    try:
        await prepare(transcript, server.url)
        if transcript["group"] == "cli-errors":
            order_stub(transcript, server.faults)
        if front is None:
            return await replay(transcript, server.url, killer(server))
        async with front(server.url, transcript) as url:
            return await replay(transcript, url, killer(server), through_proxy=True)
    finally:
        await server.stop()
