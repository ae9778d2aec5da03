"""`ollama-router demo`: what the router is for, on a simulated Ollama with a virtual RTX A5000.

The same requests go first directly to the simulated Ollama, then through the router; then another program takes 10 GB
of VRAM, and releases it again. The router is the real one; the cards, the models and the load times are simulated.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ollama_simulator.machine.probe import CardsProbe
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig, SimulatedOllama, running_simulator
from router.app import Running, running
from router.cli.table import print_table
from router.config import load_config
from router.core.ollama.names import key_of
from router.core.units import MIB
from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamRequest

MODELS = (
    "llama3.3:70b-instruct-q4_K_M",
    "llama3.3:70b-instruct-q3_K_L",
    "llama3.3:70b-instruct-q2_K",
    "llama3.1:8b-instruct-fp16",
    "llama3.1:8b-instruct-q8_0",
    "llama3.1:8b",
    "llama3.2:3b",
    "llama3.2:1b",
)
ASKED = MODELS[0]
REQUESTS = ((ASKED, "why is the sky blue?"), (ASKED, "and at night?"), ("llama3.2:3b", "one word for blue?"))
TOKENS = 10
FOREIGN_MIB = 10000
ALONE, ROUTED, TAKEN, RELEASED = "Ollama alone", "router", "10 GB taken", "released"
SAID = {
    ALONE: "Ollama alone: three requests go straight to it, two of them for a 70B that the card cannot hold.",
    ROUTED: "With the router: the same requests, on an empty card again.",
    TAKEN: "The models were idle and are unloaded; another program takes 10 GB: what fits now is smaller.",
    RELEASED: "It gives the memory back: the router goes back up by itself.",
}
"""What the terminal says when a phase begins."""
TITLES = ("phase", "requested", "served by", "why", "on GPU", "tokens/s", "first token")


@dataclass(frozen=True, slots=True)
class Shown:
    """One row of the table."""

    phase: str
    requested: str
    served: str
    why: str
    gpu_percent: int
    tokens_per_s: float
    ttft_s: float

    def cells(self) -> tuple[str, ...]:
        """Return the cells as text."""
        rate, first = f"{self.tokens_per_s:.1f}", f"{self.ttft_s:.1f} s"
        return (self.phase, self.requested, self.served, self.why, f"{self.gpu_percent} %", rate, first)

    def sentence(self) -> str:
        """Return the row in plain words."""
        who = "itself" if key_of(self.served) == key_of(self.requested) else self.served
        return f"{self.requested} → {who}, {self.gpu_percent} % on the GPU, {self.tokens_per_s:.1f} tokens/s"


def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit after the table instead of serving on.")] = False,
    listen: Annotated[str, typer.Option(help="Address of the demo's router.")] = "127.0.0.1:11435",
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Run a demonstration on an embedded simulator; nothing is downloaded, and no GPU is needed.

    Exit code 0 if the 70B model spilled without the router and no model spilled with it, else 1.
    """
    with asyncio.Runner() as runner:
        sys.exit(runner.run(_demo("127.0.0.1:0" if once else listen, once=once, as_json=as_json)))


async def _demo(listen: str, *, once: bool, as_json: bool) -> int:
    console = Console(stderr=as_json)
    speeds = Speeds(load_mib_per_s=12000.0)
    card = CardSpec(name="CUDA0", description="NVIDIA RTX A5000", total_mib=24564)
    config = SimConfig(machine=Machine(cards=(card,), speeds=speeds), models=MODELS)
    async with running_simulator(config) as sim:
        rows = await _ask_all(sim, sim.url, ALONE, REQUESTS, console)
        await _empty(sim)
        probe = CardsProbe(sim.cards)
        async with running(_config(sim, listen), probe=probe, is_probed=True) as router:
            rows += await _routed(sim, router, console)
            _print(rows, console, as_json=as_json)
            if not once:
                await _stay(router, listen, console)
    straight = [row for row in rows if row.phase.startswith("Ollama")]
    routed = [row for row in rows if not row.phase.startswith("Ollama")]
    did_spill = any(row.requested == ASKED and row.gpu_percent < 100 for row in straight)
    return 0 if did_spill and all(row.gpu_percent == 100 for row in routed) else 1


async def _routed(sim: SimulatedOllama, router: Running, console: Console) -> list[Shown]:
    """Send the requests through the router: normally, while another program holds 10 GB, and after that."""
    rows = await _ask_all(sim, router.url, ROUTED, REQUESTS, console)
    for phase, foreign_mib in ((TAKEN, FOREIGN_MIB), (RELEASED, 0)):
        if foreign_mib:
            await _empty(sim)
        sim.cards.set_foreign(0, foreign_mib * MIB)
        await next(iter(router.router.backends.values())).world.refresh_fresh()
        rows += await _ask_all(sim, router.url, phase, REQUESTS[:2], console)
    return rows


async def _ask_all(
    sim: SimulatedOllama, url: str, phase: str, requests: Iterable[tuple[str, str]], console: Console
) -> list[Shown]:
    """Send a phase's requests one after another, saying in the terminal what happens."""
    number = 1 + list(SAID).index(phase)
    console.print(f"{number}. {SAID[phase]}", style="bold", highlight=False, soft_wrap=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    found = []
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=None)
        for model, prompt in requests:
            progress.update(task, description=f"{phase}: {model}")
            found.append(await _ask(sim, url, phase, model, prompt))
            style = "green" if found[-1].gpu_percent == 100 else "red"
            progress.console.print(f"   {found[-1].sentence()}", style=style, highlight=False, soft_wrap=True)
    return found


def _config(sim: SimulatedOllama, listen: str) -> Any:
    """Return the router's defaults, except that upgrades are immediate: the demo should not take minutes."""
    options = {
        "listen": listen,
        "admin": "127.0.0.1:0" if listen.endswith(":0") else "127.0.0.1:11436",
        "backends.local.url": sim.url,
        "store.path": ":memory:",
        "defaults.upgrade_after_s": 0,
    }
    return load_config(env={}, options=options)


async def _empty(sim: SimulatedOllama) -> None:
    """Unload all models, as their keep-alive would in a few minutes."""
    client = HttpRelay(sim.url)
    for row in sim.engine.ps():
        await _post(client, "/api/generate", {"model": row.model.name, "keep_alive": 0})
    while sim.engine.ps():  # noqa: ASYNC110 - the simulator has no event for it
        await asyncio.sleep(0.1)
    await client.aclose()


async def _post(client: HttpRelay, path: str, body: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[bytes, bytes]]:
    data = json.dumps(body).encode()
    answer = await client.open(UpstreamRequest(b"POST", path.encode(), [], data, len(data)))
    parts = []
    while part := await answer.read():
        parts.append(part)
    return [json.loads(line) for line in b"".join(parts).splitlines()], dict(answer.headers)


async def _ask(sim: SimulatedOllama, url: str, phase: str, model: str, prompt: str) -> Shown:
    client = HttpRelay(url)
    started_s = asyncio.get_running_loop().time()
    body = {"model": model, "prompt": f"[[tokens={TOKENS}]] {prompt}", "stream": False}
    lines, headers = await _post(client, "/api/generate", body)
    took_s = asyncio.get_running_loop().time() - started_s
    await client.aclose()
    last = lines[-1]
    if "error" in last:
        return Shown(phase, model, "-", str(last["error"]), 0, 0.0, took_s)
    eval_s = last.get("eval_duration", 0) / 1e9
    served = headers.get(b"x-router-model", str(last["model"]).encode()).decode()
    why = headers.get(b"x-router-reason", b"").decode()
    rate = last.get("eval_count", 0) / eval_s if eval_s else 0.0
    return Shown(phase, model, served, why, _gpu_percent(sim, served), rate, max(0.0, took_s - eval_s))


def _gpu_percent(sim: SimulatedOllama, served: str) -> int:
    """Return the percentage of a model that is on the GPU, as `ollama ps` shows it; 0 if it is not loaded."""
    for row in sim.engine.ps():
        if key_of(row.model.name) == key_of(served):
            return round(100 * row.size_vram_bytes / row.size_bytes) if row.size_bytes else 0
    return 0


def _print(rows: list[Shown], console: Console, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([dict(zip(TITLES, row.cells(), strict=True)) for row in rows], indent=2))
        return
    print_table(
        console,
        TITLES,
        [row.cells() for row in rows],
        title="llama3.3:70b on a virtual RTX A5000 with 24 GB",
        names=("requested", "served by"),
        styles=["" if row.gpu_percent == 100 else "red" for row in rows],
    )
    routed = [row for row in rows if not row.phase.startswith("Ollama")]
    straight = [row for row in rows if row.phase.startswith("Ollama")]
    print(
        f"spilled without the router: {sum(row.gpu_percent < 100 for row in straight)} of {len(straight)}; "
        f"with the router: {sum(row.gpu_percent < 100 for row in routed)} of {len(routed)}"
    )


async def _stay(router: Running, listen: str, console: Console) -> None:
    console.print("\nThe router is still running (Ctrl-C stops it). Try from another terminal:\n")
    body = json.dumps({"model": ASKED, "prompt": "why is the sky blue?"})
    lines = (
        f"curl -i {router.url}/api/generate -d '{body}'",
        f"OLLAMA_HOST={listen} ollama run {ASKED} 'why is the sky blue?'",
        f"python3 -c \"import ollama; print(ollama.Client('{router.url}').generate('{ASKED}', 'hi').model)\"",
    )
    for text in lines:
        print(f"  {text}", flush=True)
    console.print(
        f"\nThe decision explained: ollama-router explain {ASKED}   or   {router.admin_url}/", highlight=False
    )
    await asyncio.Event().wait()
