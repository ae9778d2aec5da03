"""A router in front of a simulated Ollama with two cards, and its dashboard in a real Chromium.

Skipped where there is none (Debian: `apt-get install chromium`). With SCREENSHOTS=docs/dashboard the pictures of the
documentation are made by these tests.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_simulator.machine.probe import CardsProbe
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig, SimulatedOllama, running_simulator
from router.app import Running, running
from router.config import load_config

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
MODELS = (
    "llama3.3:70b-instruct-q4_K_M", "llama3.3:70b-instruct-q2_K", "llama3.1:8b-instruct-fp16", "llama3.1:8b",
    "llama3.2:3b",
)  # fmt: skip
BIG, SERVED, SMALL = MODELS[0], MODELS[2], MODELS[4]
SIZES = {"wide": (1400, 900), "phone": (390, 844)}


@dataclass
class Scene:
    """A page, what stands behind it, and what it has complained of."""

    page: Any
    router: Running
    sim: SimulatedOllama
    errors: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    async def ask(self, model: str, tokens: int = 5, key: str = "") -> httpx.Response:
        """Send a request as a client would, perhaps with the key of a team."""
        body = {"model": model, "prompt": f"[[tokens={tokens}]] hello", "stream": False}
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(timeout=60) as client:
            return await client.post(f"{self.router.url}/api/generate", json=body, headers=headers)

    async def sees(self, selector: str, text: str) -> None:
        """Wait until an element says `text`."""
        await self.page.locator(selector).filter(has_text=text).first.wait_for(timeout=20_000)

    async def picture(self, name: str) -> None:
        """Take a picture for the documentation, if that is asked for."""
        if folder := os.environ.get("SCREENSHOTS"):
            await self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@asynccontextmanager
async def scene_of(
    size: str = "wide", *, load_mib_per_s: float = 40_000, scheme: str = "light", **more: object
) -> AsyncIterator[Scene]:
    """Run everything, and open the dashboard. `more` is configured besides."""
    playwright = pytest.importorskip("playwright.async_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    cards = tuple(CardSpec(name=f"CUDA{n}", description="NVIDIA RTX A5000", total_mib=24564) for n in range(2))
    machine = Machine(cards=cards[:1], speeds=Speeds(load_mib_per_s=load_mib_per_s))
    async with (
        running_simulator(SimConfig(machine=machine, models=MODELS)) as sim,
        playwright.async_playwright() as made,
    ):
        options = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "backends.local.url": sim.url,
            "store.path": ":memory:",
            **more,
        }
        async with running(load_config(env={}, options=options), probe=CardsProbe(sim.cards), is_probed=True) as router:
            browser = await made.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
            width, height = SIZES[size]
            page = await browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            scene = Scene(page, router, sim)
            page.on(
                "console", lambda said: scene.errors.append(said.text) if said.type in ("error", "warning") else None
            )
            page.on("pageerror", lambda error: scene.errors.append(str(error)))
            page.on("request", lambda request: scene.requested.append(request.url))
            await page.goto(f"{router.admin_url}/")
            try:
                yield scene
            finally:
                await browser.close()
                await asyncio.sleep(0)
