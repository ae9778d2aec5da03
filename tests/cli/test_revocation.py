"""Keys of a running router: made, rotated and revoked by the command, and in force after a reload."""

from __future__ import annotations

import asyncio
import sys

import pytest

from router.cli import main
from tests.cli.test_reload import generations
from tests.config.keys.play import connect
from tests.fakes import request_bytes

pytestmark = pytest.mark.real_time
BODY = '{"model":"m","prompt":"hi","stream":false}'


@pytest.fixture
def keys(monkeypatch, capfd):
    """Return what a command prints on standard output."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["ollama-router", "keys", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main.run()
        assert not ended.value.code
        return capfd.readouterr().out.strip()

    return run


async def status_of(raw, key, target="/api/generate"):
    return (await raw.ask("POST", target, BODY, [("Authorization", f"Bearer {key}")])).status


async def test_a_revoked_key_fails_on_the_next_request_of_an_open_connection_t4(tmp_path, keys):
    """After a reload in place, which keeps the connection; a new one counts at once, and both in between."""
    async with generations(tmp_path) as (scene, them):
        file = tmp_path / "teams" / "one.yaml"
        raw = await connect(scene.service.url)
        first = keys("new", "--file", file, "--id", "first")
        assert await status_of(raw, first) == 403  # not read yet
        await them.reload()
        assert [await status_of(raw, first) for _ in range(3)] == [200] * 3
        second = keys("rotate", "--file", file, "--id", "first", "--new-id", "second")
        await them.reload()
        assert [await status_of(raw, key) for key in (first, second)] == [200, 200]
        keys("revoke", "--file", file, "--id", "first")
        assert await status_of(raw, first) == 200  # until the reload
        await them.reload()
        assert [await status_of(raw, key) for key in (first, second)] == [403, 200]
        assert await status_of(raw, first, "/v1/completions") == 401
        assert len(scene.started) == 1
        raw.close()


async def test_the_admin_keys_of_a_reload_count_t4(tmp_path, keys):
    """A revoked one fails on the admin address, too."""
    async with generations(tmp_path) as (scene, them):

        async def status(key):
            raw = await connect(scene.service.admin_url)
            reply = await raw.ask(
                "POST", "/router/forget", None, [("Authorization", f"Bearer {key}"), ("Content-Length", "0")]
            )
            raw.close()
            return reply.status

        key = keys("new", "--admin", "--file", scene.file, "--id", "ops")
        await them.reload()
        assert [await status(key), await status("x")] == [200, 401]
        other = keys("rotate", "--admin", "--file", scene.file, "--id", "ops", "--new-id", "next")
        keys("revoke", "--admin", "--file", scene.file, "--id", "ops")
        await them.reload()
        assert [await status(key), await status(other)] == [401, 200]


async def test_a_stream_of_events_ends_when_the_key_that_opened_it_is_revoked_k4(tmp_path, keys):
    """With the reload, which is a next router's: what it shows is not for that key any more."""
    async with generations(tmp_path) as (scene, them):
        key = keys("new", "--admin", "--file", scene.file, "--id", "ops")
        await them.reload()
        raw = await connect(scene.service.admin_url)
        await raw.send(request_bytes("GET", "/router/events", None, [("Authorization", f"Bearer {key}")]))
        assert await raw.reader.readuntil(b"event: board")
        keys("revoke", "--admin", "--file", scene.file, "--id", "ops")
        assert (await them.reload())["by"] == "next router"
        await asyncio.wait_for(raw.reader.read(), 30)  # to its end
        raw.close()
