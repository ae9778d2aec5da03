"""A key is seen in nothing that a whole router writes: logs of every level, admin pages, metrics, files, answers."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from pathlib import Path

import pytest

from ollama_simulator.server import SimConfig
from router.core.teams.keys import digest_of, make_key
from router.planning.stage import stage
from router.telemetry import LogHook
from tests.config.keys.play import SMALL, get, send

CANARY = "canary" + "7" * 26
KEY, WRONG, ADMIN_KEY = make_key("coding", CANARY), make_key("other", CANARY), make_key("admin", CANARY[::-1])
FOREIGN = f"sk-{CANARY}"
SECRETS = [CANARY, CANARY[::-1], *(digest_of(key.encode()).hex() for key in (KEY, ADMIN_KEY, FOREIGN))]
PAGES = ["state", "board", "decisions", "config", "usage", f"explain?model={SMALL}"]


def teams(folder: Path) -> str:
    keys = [{"id": f"k{at}", "sha256": digest_of(key.encode()).hex()} for at, key in enumerate((KEY, FOREIGN))]
    (folder / "coding.yaml").write_text(json.dumps({"team": "coding", "keys": keys}))
    return str(folder / "*.yaml")


async def visit(url: str) -> list[str]:
    """Send requests with keys in every place, good and bad; return what was answered."""
    seen = []
    body = {"model": SMALL, "prompt": "[[tokens=3]] hi", "stream": False}
    for key in (KEY, FOREIGN, WRONG, KEY[:-1]):
        basic = base64.b64encode(f"u:{key}".encode()).decode()
        for headers in (
            [("Authorization", f"Bearer {key}")],
            [("x-api-key", key)],
            [("Authorization", f"Basic {basic}")],
        ):
            for target in ("/api/generate", "/v1/chat/completions", "/api/pull", "/nope", "/api//generate"):
                reply = await send(url, "POST", target, body, headers)
                seen += [repr(reply.headers), reply.body.decode()]
        for target in (
            f"/t/{key}/api/generate",
            f"//t/{key}/api/tags",
            f"/t/{key}//api/x",
            f"/%74/{key}",
            f"/t/{key}/nope",
        ):
            reply = await send(url, "POST", target, body, [("Referer", f"{url}/t/{key}/")])
            seen += [repr(reply.headers), reply.body.decode()]
    return seen


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_key_is_seen_nowhere_g5(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd) -> None:
    """Neither of teams nor of admins, nor the hash of one."""
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    lines: list[bytes] = []
    files = tmp_path / "files"
    files.mkdir()
    config = {
        "teams": teams(tmp_path),
        "admin_keys": [{"id": "ops", "sha256": digest_of(ADMIN_KEY.encode()).hex()}],
        "audit.path": str(files / "audit.jsonl"),
        "usage.path": str(files / "usage.sqlite"),
        "store.path": str(files / "learned.sqlite"),
        "telemetry.log_level": "debug",
    }
    async with stage(SimConfig(models=(SMALL,)), config, hooks=[LogHook("debug", sink=lines.append)]) as one:
        seen = await visit(one.url)
        admin = one.router.admin_url
        for headers in ([("Authorization", f"Bearer {ADMIN_KEY}")], [("X-Router-Admin", KEY)]):
            reply = await send(admin, "POST", "/router/forget", headers=headers)
            seen += [repr(reply.headers), reply.body.decode()]
        pages = [
            (await get(admin, path)).body.decode() for path in (*(f"/router/{page}" for page in PAGES), "/metrics")
        ]
        assert all(SMALL in page for page in (pages[0], pages[2]))
    written = [file.read_bytes().decode("latin-1") for file in files.iterdir()]
    asked = [repr((one.headers, one.body, one.path)) for one in one.sim.seen]
    texts = [*seen, *pages, *written, *(line.decode() for line in lines), caplog.text, *capfd.readouterr(), *asked]
    assert len(lines) > 20
    assert [text[:300] for text in texts if any(secret in text for secret in SECRETS)] == []
