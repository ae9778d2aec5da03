"""After any number of reloads with other teams nothing is left of those that are no more."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from router.config import load_config, prepare
from router.core.teams.keys import digest_of
from tests.config.keys.play import MIDDLE, OTHER, SMALL, get, hello, play, send

PREFIX = "growing-"
RELOADS, LOOKS = 1000, 4
KEPT = {"telemetry.decisions_kept": 4}
TEXT = """team: {name}
keys: [{{ id: k, sha256: "{digest}" }}]
share: {share}
chains: {{ x: [{model}] }}
models: {{ deny: [nothing-*] }}
limits: {{ requests_per_minute: 4, concurrent: 4, tokens_per_day: 1M, waiting: 4, evictions_per_minute: 60 }}
vram: {{ floor: 1%, cap: 90% }}
"""


def key_of(name: str) -> str:
    return f"sk-{name.removeprefix(PREFIX)}-key"


def write(folder, number: int) -> None:
    """Replace the files of all teams by those of two others."""
    for file in folder.glob("*.yaml"):
        file.unlink()
    for index, model in enumerate((OTHER, MIDDLE)):
        name = f"{PREFIX}{number}-{index}"
        text = TEXT.format(name=name, digest=digest_of(key_of(name).encode()).hex(), share=1 + number % 3, model=model)
        (folder / f"{name}.yaml").write_text(text)


def names_alive() -> set[str]:
    """Return the names of teams that any object of this process holds."""
    gc.collect()
    seen: set[int] = set()
    return set(_names(gc.get_objects(), seen))


def _names(todo: list[object], seen: set[int]) -> Iterator[str]:
    while todo:
        for one in gc.get_referents(todo.pop()):
            if type(one) is str:
                if one.startswith(PREFIX) and "/" not in one:
                    yield str(one)
            elif id(one) not in seen and not gc.is_tracked(one):  # tracked ones are in the list from the start
                seen.add(id(one))
                todo.append(one)


@pytest.mark.slow
def test_a_thousand_reloads_with_other_teams_leave_nothing_behind(tmp_path):
    """Counts, shares, limits, permits, decisions, series of metrics: whatever is kept of a team goes with it."""
    config = {"defaults.auto_chains": "off", "teams": str(tmp_path / "*.yaml"), **KEPT}

    async def ask(one, name):
        bearer = [("Authorization", f"Bearer {key_of(name)}")]
        reply = await send(one.router.url, "POST", "/api/generate", hello("x", stream=False), bearer)
        return reply.status

    async def story(one):
        found = []
        options = one.router.config.model_dump(mode="json")
        for number in range(1, RELOADS + 1):
            write(tmp_path, number)
            loaded = prepare(load_config(env={}, options=config | {"listen": options["listen"]}), number + 1)
            one.router.take_over(loaded)
            if number % 10 == 0:  # of these requests, too
                names = [f"{PREFIX}{number}-{index}" for index in (0, 1, 0, 1, 0, 0, 0)]
                statuses = await asyncio.gather(*(ask(one, name) for name in names))
                assert {200, 429} == set(statuses)
                await get(one.router.admin_url, "/metrics")
                await get(one.router.admin_url, "/router/teams")
                await asyncio.sleep(30)
            if number % (RELOADS // LOOKS) == 0:
                del names, loaded
                page = (await get(one.router.admin_url, "/metrics")).body.decode()
                shown = {line for line in page.splitlines() if PREFIX in line}
                found.append((len(names_alive()), len(shown), 'team="other"' in page))
        return found

    write(tmp_path, 0)
    found = play(story, config, models=(OTHER, MIDDLE, SMALL))
    alive, shown, has_other = zip(*found, strict=True)
    assert max(alive) <= alive[0] + 2
    assert max(alive) <= 12
    assert max(shown) <= shown[0]
    assert not any(has_other)
