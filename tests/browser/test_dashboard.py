"""The dashboard in a real browser: every part of it, on a desk and on a phone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from router.core.teams.keys import digest_of, make_key
from router.core.units import GIB
from tests.browser.conftest import BIG, SERVED, SIZES, SMALL, scene_of

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

HOSTILE = "<img src=x onerror=document.body.dataset.owned=1>"


async def test_an_idle_router_shows_its_cards_and_loads_nothing_from_elsewhere_k2() -> None:
    """Ready, a whole card free, no error in the console, and no request to another host."""
    async with scene_of() as scene:
        await scene.sees("#ready", "ready")
        await scene.sees(".card", "NVIDIA RTX A5000")
        await scene.sees("#cards", "Nothing is loaded.")
        await scene.sees("#decisions", "No request yet")
        assert await scene.page.locator(".block.free").count() == 1
        await scene.picture("idle")
        assert scene.errors == []
        assert all(url.startswith(scene.router.admin_url) for url in scene.requested)


async def test_an_avoided_spill_is_told_in_one_sentence_and_opens_to_the_verdicts() -> None:
    """By mouse and by keyboard; the tile counts it, the timeline shows the model."""
    async with scene_of() as scene:
        assert (await scene.ask(BIG)).status_code == 200
        await scene.sees("#decisions summary", BIG)
        await scene.sees("#decisions summary", "needs 43")
        await scene.sees(".tile", "1spill avoided")
        await scene.sees(".tile", "1request")
        await scene.sees(".block.model", SERVED)
        await scene.sees(".lane", SERVED)
        assert await scene.page.locator("#decisions li", has_text="Loaded").count() == 1
        await scene.sees("#h-hour", "Since ")
        await scene.sees(".ruler", "24 GiB")
        summary = scene.page.locator("#decisions summary").first
        await summary.focus()
        await scene.page.keyboard.press("Enter")
        await scene.sees(".verdicts tr", "too big")
        await scene.sees("#decisions summary", "took")  # its end has come, which makes its row again
        assert await scene.page.locator(".verdicts tr.chosen").inner_text() != ""
        assert await scene.page.locator("#decisions li").count() == 2  # the request, and its load
        await scene.picture("spill-avoided")
        assert scene.errors == []


async def test_a_load_is_hatched_and_those_that_wait_for_it_are_one_row() -> None:
    """Until it is done."""
    async with scene_of(load_mib_per_s=4000) as scene:
        asking = [asyncio.create_task(scene.ask(BIG)) for _ in range(3)]
        await scene.sees(".block.loading", SERVED)
        await scene.sees("#queue li", "3 requests wait for its load")
        assert await scene.page.locator("#queue li").count() == 1
        await scene.sees(".legend", "loading for")
        await scene.picture("load")
        assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200, 200, 200]
        await scene.sees("#queue", "Nothing waits.")


async def test_a_switch_shows_what_goes_and_other_programs_are_a_block_of_their_own() -> None:
    """The decision list says what was loaded in place of what."""
    async with scene_of(load_mib_per_s=8000) as scene:
        await scene.ask("llama3.1:8b")
        scene.sim.cards.set_foreign(0, 4 * GIB)
        asking = asyncio.create_task(scene.ask("llama3.1:8b-instruct-fp16"))
        await scene.sees(".legend", "in place of llama3.1:8b")
        await scene.picture("switch")
        assert (await asking).status_code == 200
        await scene.sees("#decisions", "in place of llama3.1:8b")
        await scene.sees(".block.others", "foreign")


async def test_an_ollama_that_is_away_is_said_and_its_return_too() -> None:
    """The pill and a note."""
    async with scene_of() as scene:
        await scene.sees("#ready", "ready")
        port = int(scene.sim.url.rpartition(":")[2])
        await scene.sim.stop()
        await scene.sees("#ready", "not ready")
        await scene.sees(".note.bad", "Ollama does not answer")
        await scene.picture("ollama-down")
        await scene.sim.start("127.0.0.1", port)
        await scene.page.locator(".note.bad").wait_for(state="detached", timeout=20_000)


async def test_models_are_kept_and_unloaded_and_the_router_is_drained_by_buttons() -> None:
    """Each shows its effect."""
    async with scene_of() as scene:
        await scene.ask(SMALL)
        await scene.page.get_by_label(f"Keep {SMALL}").click()
        await scene.sees(".legend li", "kept")
        await scene.page.get_by_label(f"Unload {SMALL}").click()
        await scene.sees("#cards", "Nothing is loaded.")
        await scene.page.get_by_role("button", name="Drain").click()
        await scene.sees("#ready", "draining")
        await scene.page.get_by_role("button", name="Drain").click()
        await scene.page.locator("#ready", has_text="ready").wait_for()


async def test_a_button_that_needs_an_admin_key_asks_for_it_k4() -> None:
    """Reading on loopback needs none; with the key the button does what it says."""
    key = make_key("admin", "0123456789abcdefghijABCDEFGHIJxy")
    async with scene_of(admin_keys=[{"id": "ops", "sha256": digest_of(key.encode()).hex()}]) as scene:
        await scene.page.locator("#ready", has_text="ready").wait_for()
        assert await scene.page.locator("#lock").is_hidden()
        await scene.page.get_by_role("button", name="Drain").click()
        await scene.page.get_by_label("This page needs an admin key.").fill(key)
        await scene.page.get_by_role("button", name="Unlock").click()
        await scene.page.locator("#lock").wait_for(state="hidden")
        await scene.page.get_by_role("button", name="Drain").click()
        await scene.sees("#ready", "draining")


async def test_the_chat_shows_the_decision_beside_the_answer() -> None:
    """And an error in its place."""
    async with scene_of() as scene:
        await scene.page.locator("#chat [name=model]").fill(BIG)
        await scene.page.locator("#chat [name=message]").fill("[[tokens=8]] hello")
        await scene.page.locator("#send").click()
        await scene.sees("#chosen", f"{BIG} → {SERVED}")
        await scene.page.wait_for_function("document.getElementById('answer').textContent.length > 10")
        await scene.sees("#decisions summary", BIG)
        await scene.sees(".block.model", SERVED)
        await scene.picture("chat")
        await scene.page.locator("#chat [name=model]").fill("nothing:1b")
        await scene.page.locator("#send").click()
        await scene.sees("#chosen", "not found")


async def test_the_explanation_names_what_would_serve_a_model_now() -> None:
    """With the table of verdicts; an unknown name is an error."""
    async with scene_of() as scene:
        await scene.page.locator("#explain [name=model]").fill(BIG)
        await scene.page.locator("#explain button").click()
        await scene.sees("#explanation .chosen", f"{SERVED} would serve it")
        assert await scene.page.locator("#explanation .verdicts tbody tr").count() >= 3
        await scene.page.locator("#explain [name=model]").fill("nothing:1b")
        await scene.page.locator("#explain button").click()
        await scene.sees("#explanation .note.bad", "not found")


def teams_in(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the configuration of five teams, and the key of each of the three that have one."""
    keys = {name: make_key(name, (name * 32)[:32]) for name in ("coding", "chat", "research")}
    about = {
        "coding": "share: 3\nlimits: { concurrent: 8, requests_per_minute: 30, tokens_per_day: 20k, waiting: 16 }",
        "chat": "limits: { requests_per_minute: 10 }",
        "research": "share: 2\nlimits: { tokens_per_day: 1k, evictions_per_minute: 4 }",
        "night-jobs": "share: 0.5",
        "anonymous": "",
    }
    for name, text in about.items():
        key = keys.get(name)
        shown = f"keys: [{{ id: k, sha256: {digest_of(key.encode()).hex()} }}]\n" if key else ""
        (folder / f"{name}.yaml").write_text(f"team: {name}\n{shown}{text}\n")
    return {"teams": f"{folder}/*.yaml"}, keys


@pytest.mark.parametrize(
    ("size", "scheme"), [("wide", "light"), ("wide", "dark"), ("phone", "light"), ("phone", "dark")]
)
async def test_teams_are_shown_with_their_share_limits_and_what_waits(size: str, scheme: str, tmp_path: Path) -> None:
    """Those without a request today in one line; a limit that is nearly used up stands out."""
    config, keys = teams_in(tmp_path)
    async with scene_of(size, scheme=scheme, load_mib_per_s=4000, **config) as scene:
        for name, times in (("coding", 5), ("chat", 9), ("research", 2)):
            assert {(await scene.ask(SMALL, 40, keys[name])).status_code for _ in range(times)} == {200}
        asked = [asyncio.create_task(scene.ask(BIG, 5, keys[name])) for name in ("research", "coding", "coding")]
        await scene.sees("#queue li", "3 requests wait for its load")
        await scene.sees("#queue li", "coding 2")
        await scene.sees("#teams li", "coding")
        await scene.sees("#teams .limit", "9 of 10")
        assert await scene.page.locator("#teams .meter.near").count() >= 1
        await scene.sees("#teams .tag", "2 waiting")
        await scene.sees("#teams", "of the time")
        await scene.sees("#teams", "today: 5 requests")
        await scene.sees("#teams .idle", "anonymous, night-jobs")
        await scene.page.locator("#decisions summary").first.click()
        await scene.picture(f"teams-{size}-{scheme}")
        assert await scene.page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
        assert [one.status_code for one in await asyncio.gather(*asked)] == [200, 200, 200]
        assert scene.errors == []


async def test_without_teams_there_is_no_panel_of_teams() -> None:
    """One team is nothing to compare."""
    async with scene_of() as scene:
        await scene.ask(SMALL)
        await scene.sees(".legend", SMALL)
        assert await scene.page.locator("#teams-panel").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_nothing_is_cut_off_on_a_phone(scheme: str) -> None:
    """No horizontal scrolling, in light and dark, with a decision open."""
    async with scene_of("phone", scheme=scheme) as scene:
        await scene.ask(BIG)
        await scene.sees("#decisions summary", BIG)
        await scene.page.locator("#decisions summary").first.click()
        assert await scene.page.evaluate("document.documentElement.scrollWidth") == 390
        assert await scene.page.evaluate("document.documentElement.dataset.theme") == scheme
        panels = "[...document.querySelectorAll('.columns .panel:not([hidden])')]"
        top = f"{panels}.sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top)"
        titles = await scene.page.evaluate(f"{top}.map((one) => one.querySelector('h2').textContent.trim())")
        assert [titles[0], *titles[2:4]] == ["Cards", "Waiting", "Decisions"]
        await scene.picture(f"phone-{scheme}")


READABLE = """() => {
  const light = ([r, g, b]) => [[r, .2126], [g, .7152], [b, .0722]].reduce((sum, [v, part]) =>
    sum + part * (v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4), 0);
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const behind = (node) => {
    const found = [];
    for (let at = node; at; at = at.parentElement) {
      const style = getComputedStyle(at);  // of what is hatched, the lighter stripe
      found.unshift(at.classList.contains("loading") ? style.getPropertyValue("--m") : style.backgroundColor);
    }
    return found;
  };
  const found = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walk.nextNode(); text; text = walk.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility() || node.matches("script, noscript, option")) continue;
    const under = behind(node);
    const [a, b] = [light(over(under)), light(over([...under, getComputedStyle(node).color]))].sort();
    const ratio = (b + .05) / (a + .05);
    if (ratio < 4.5) found.add(`${ratio.toFixed(2)} ${node.className || node.tagName}: ${text.data}`);
  }
  return [...found];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_has_the_contrast_of_wcag_aa(scheme: str) -> None:
    """4.5 : 1 against what is behind it: on tags, in bars, while something loads, and of other programs."""
    async with scene_of(scheme=scheme, load_mib_per_s=4000) as scene:
        assert (await scene.ask(SMALL)).status_code == 200
        scene.sim.cards.set_foreign(0, 4 * GIB)
        await scene.page.locator("#explain [name=model]").fill(BIG)
        await scene.page.locator("#explain button").click()
        await scene.sees("#explanation .chosen", "would serve it")
        assert await scene.page.evaluate(READABLE) == []
        asking = asyncio.create_task(scene.ask(BIG))
        await scene.sees(".block.loading", SERVED)
        assert await scene.page.evaluate(READABLE) == []
        assert (await asking).status_code == 200
        await scene.sees("#decisions summary", BIG)
        await scene.page.locator("#decisions summary").first.click()
        await scene.sees(".verdicts tr", "too big")
        assert await scene.page.evaluate(READABLE) == []


async def test_names_with_markup_are_shown_as_text_k3() -> None:
    """Of models, teams, programs and errors."""
    async with scene_of() as scene:
        await scene.sees("#ready", "ready")
        board = await (await scene.page.request.get(f"{scene.router.admin_url}/router/board")).json()
        block = {"kind": "model", "model": HOSTILE, "bytes": 8 * GIB}
        board["cards"][0]["blocks"][:0] = [block]
        board["queue"] = [{"position": 1, "model": HOSTILE, "since": 0, "team": HOSTILE}]
        board["notes"] = [HOSTILE]
        decision = {
            "kind": "request",
            "request_id": "r",
            "at": 1,
            "requested": HOSTILE,
            "chosen": HOSTILE,
            "team": HOSTILE,
        }
        decision |= {"outcome": "exact", "reason": HOSTILE, "verdicts": []}
        text = f"event: board\ndata: {json.dumps(board)}\n\nevent: decisions\ndata: {json.dumps([decision])}\n\n"
        await scene.page.route(
            "**/router/events", lambda route: route.fulfill(body=text, content_type="text/event-stream")
        )
        await scene.page.reload()
        await scene.sees("#notes", HOSTILE)
        await scene.sees("#decisions", HOSTILE)
        assert await scene.page.evaluate("document.body.dataset.owned") is None
        assert await scene.page.locator("img[src=x]").count() == 0
