"""A reload puts rules in force in the running router, and tells what it has done; a broken file changes nothing."""

import asyncio
import json
import os
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router.cli.generations import RELOADED, Generations
from router.cli.watching import POLL_S, watch
from router.config import load_config, watched_files
from router.errors import ReloadRefused
from router.telemetry import LogHook
from tests.config.keys.play import connect, get, send
from tests.config.keys.process import ollama
from tests.config.test_load import BROKEN
from tests.config.test_teams import BROKEN as BROKEN_TEAMS
from tests.fakes import request_bytes
from tests.http.raw_upstream import STREAM_HEAD, answer, chunk

pytestmark = pytest.mark.real_time

DONE = answer(b'{"model":"m","response":"a","done":true}')
STREAM = request_bytes("POST", "/api/generate", json.dumps({"model": "endless", "prompt": "hi"}))
NOTICED_S = 2.0
BUSY_S = 30.0
"""The machine may be busy: what is to take at most `NOTICED_S` is waited for this long, and counted in looks."""


class Scene:
    """Generations that read `file`, and what they have started and logged."""

    def __init__(self, folder, upstream):
        self.folder, self.file, self.upstream = folder, folder / "router.yaml", upstream
        self.started, self.lines = [], []
        self.write()

    def write(self, text=""):
        """Write router.yaml with some more lines."""
        self.file.write_text(f"teams: teams/*.yaml\n{text}\n")

    def team(self, text="team: one\n", name="one"):
        """Write the file of a team."""
        (self.folder / "teams").mkdir(exist_ok=True)
        (self.folder / "teams" / f"{name}.yaml").write_text(text)

    def load(self):
        options = {
            "listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "backends.local.url": self.upstream,
            "backends.local.probe.kind": "none", "store.path": ":memory:",
        }  # fmt: skip
        return load_config(self.file, env={}, options=options)

    def messages(self):
        return [json.loads(line)["msg"] for lines in self.lines for line in lines.splitlines()]

    def reloads(self):
        """Return what each reload that was taken has changed, by the log."""
        front = f"{RELOADED}: "
        return [text.removeprefix(front) for text in self.messages() if text.startswith(front)]

    @property
    def service(self):
        return self.started[-1]

    async def state(self):
        return (await get(self.service.admin_url, "/router/state")).json()["config"]

    async def metric(self):
        lines = (await get(self.service.admin_url, "/metrics")).body.decode().splitlines()
        name = "ollama_router_config_last_reload_successful "
        return [line.removeprefix(name) for line in lines if line.startswith(name)]


@asynccontextmanager
async def generations(folder, script=DONE):
    """Provide a scene, and its generations."""
    async with ollama(script) as upstream:
        scene = Scene(folder, upstream.url)
        scene.team()
        them = Generations(scene.load, lambda _: LogHook("info", sink=scene.lines.append), scene.started.append)
        task = asyncio.create_task(them.run(scene.load()))
        try:
            async with asyncio.timeout(120):
                while not scene.started:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                yield scene, them
        finally:
            them.stop()
            them.stop()
            await task


async def test_rules_are_put_in_force_in_the_running_router_d3(tmp_path):
    """Connections stay, the next request has the new rules, and the serial number says so."""
    async with generations(tmp_path) as (scene, them):
        raw = await connect(scene.service.url)
        assert (await raw.ask("GET", "/api/version")).status == 200
        before = await scene.state()
        scene.write("chains: { x: [a, b] }\ndefaults: { nothing_fits: wait }")
        scene.team("team: one\nchains: { x: [c] }\n")
        found = await them.reload()
        assert (found["by"], found["changed"]) == ("in place", ["chains", "defaults.nothing_fits", "team_files"])
        assert len(scene.started) == 1
        assert (await raw.ask("GET", "/api/version")).status == 200
        after = await scene.state()
        assert after == {"serial": 2, "digest": found["digest"], "reload_error": None}
        assert before["digest"] != after["digest"]
        book = scene.service.router.rules.book
        assert book.chains_of(book.team("one")).rule_for("x").variants[0].model == "c"
        assert (await get(scene.service.admin_url, "/router/config")).json()["chains"].keys() == {"x"}
        raw.close()


async def test_files_that_say_the_same_change_nothing(tmp_path):
    """Such as after a reload that was asked for: the files that were noticed are those in force."""
    async with generations(tmp_path) as (scene, them):
        scene.write("# more")
        assert (await them.reload(if_changed=True))["by"] == "unchanged"
        assert (scene.reloads(), (await scene.state())["serial"]) == ([], 1)
        assert (await them.reload())["by"] == "in place"
        scene.team("team: one\nshare: 2\n")
        assert (await them.reload(if_changed=True))["changed"] == ["team_files"]
        assert scene.reloads() == ["nothing differs", "teams changed: one (share)"]
        scene.team("team: one\nshare: 0\n")
        with pytest.raises(ReloadRefused):
            await them.reload(if_changed=True)
        scene.team("team: one\nshare: 2\n")
        await them.reload(if_changed=True)
        assert (await scene.metric(), (await scene.state())["reload_error"]) == (["1.0"], None)


async def test_what_clients_may_ask_for_is_put_in_force_at_once(tmp_path):
    """The next request is refused what it was allowed before."""
    ask = {"model": "m", "prompt": "hi", "stream": False, "keep_alive": -1}
    async with generations(tmp_path) as (scene, them):
        assert (await send(scene.service.url, "POST", "/api/generate", ask)).status == 200
        scene.write("clients: { keep_alive_forever: refuse }")
        assert (await them.reload())["by"] == "in place"
        assert (await send(scene.service.url, "POST", "/api/generate", ask)).status == 403


async def test_an_operator_can_reload_and_is_told_what_came_of_it(tmp_path):
    """`POST /router/reload`, also where the next router takes over; 409 with the reason where nothing has changed."""
    async with generations(tmp_path) as (scene, _):
        scene.team("team: one\nshare: 2\n")
        reply = await send(scene.service.admin_url, "POST", "/router/reload", headers=[("X-Router-Admin", "yes")])
        assert (reply.status, reply.json()["by"], reply.json()["changed"]) == (200, "in place", ["team_files"])
        scene.write("telemetry: { headers: false }")
        reply = await send(scene.service.admin_url, "POST", "/router/reload", headers=[("X-Router-Admin", "yes")])
        assert (reply.status, reply.json()["by"]) == (200, "next router")
        assert len(scene.started) == 2
        scene.team("team: one\nshare: 0\n")
        reply = await send(scene.service.admin_url, "POST", "/router/reload", headers=[("X-Router-Admin", "yes")])
        assert (reply.status, reply.json()["code"]) == (409, "reload_refused")
        assert "one.yaml:2: share: found 0" in reply.json()["error"]
        assert (await scene.state())["reload_error"] == reply.json()["error"]
        assert (await get(scene.service.admin_url, "/router/reload")).status == 405


def broken_files():
    """Twenty-four broken configurations, of all and of a team: the file, its text, what the error says."""
    of_all = [("router.yaml", text, why) for text, why in list(BROKEN.values())[:12]]
    return of_all + [("teams/one.yaml", text, why) for text, why in list(BROKEN_TEAMS.values())[:12]]


async def test_broken_files_are_refused_and_what_serves_stays_d4(tmp_path):
    """Each with one line in the log that names file, line and key; the metric is 0 until a file is right again."""
    cases = broken_files()
    assert len(cases) == 24
    async with generations(tmp_path) as (scene, them):
        before = await scene.state()
        for name, text, why in cases:
            scene.write()
            scene.team()
            (tmp_path / name).write_text(text)
            scene.lines.clear()
            with pytest.raises(Exception, match="found|invalid YAML"):
                await them.reload()
            (line,) = scene.messages()
            assert line.startswith("the configuration was not reloaded, the one before serves on: ")
            assert str(tmp_path / name) in line
            assert why.replace("a.yaml", "one.yaml") in line
            assert await scene.metric() == ["0.0"]
            assert (await scene.state())["serial"] == before["serial"]
            assert (await get(scene.service.url, "/api/version")).status == 200
        scene.write()
        scene.team()
        await them.reload()
        assert await scene.metric() == ["1.0"]
        assert scene.messages()[-1].startswith(RELOADED)
        assert len(scene.started) == 1


async def test_a_missing_or_half_written_file_is_refused_d4(tmp_path):
    """The router serves on."""
    async with generations(tmp_path) as (scene, them):
        for change in (
            scene.file.unlink,
            lambda: scene.file.write_text("teams: [te"),
            lambda: scene.file.write_bytes(b"\xff"),
        ):
            change()
            with pytest.raises(Exception, match=r"router\.yaml"):
                await them.reload()
            assert await scene.metric() == ["0.0"]
        (tmp_path / "teams" / "one.yaml").unlink()
        scene.write()
        with pytest.raises(Exception, match="found no file that matches"):
            await them.reload()
        assert (await get(scene.service.url, "/api/version")).status == 200


async def test_twenty_reloads_under_load_fail_no_request_and_cut_no_stream_d3(tmp_path):
    """Every other one needs a next router; streams begin before the first, and end after the last."""
    is_over = asyncio.Event()

    async def script(visit):
        if b"endless" not in visit.body:
            await DONE(visit)
            return
        await visit.say(STREAM_HEAD + chunk(b'{"response":"a"}\n'))
        await is_over.wait()
        await visit.say(chunk(b'{"response":"b","done":true}\n') + chunk(b""))

    async with generations(tmp_path, script) as (scene, them):
        streams = [await connect(scene.service.url) for _ in range(50)]
        for raw in streams:
            await raw.send(STREAM)
            await raw.reader.readuntil(b'"a"')
        statuses: list[int] = []
        asking = asyncio.create_task(asking_on(scene, statuses))
        for number in range(20):
            scene.write(f"telemetry: {{ headers: {str(bool(number // 2 % 2)).lower()} }}")
            scene.team(f"team: one\nshare: {number + 1}\n")
            await them.reload()
            await asyncio.sleep(0.1)
        asking.cancel()
        is_over.set()
        ends = [await raw.reader.read() for raw in streams]
        assert all(b'"b"' in end and end.endswith(b"0\r\n\r\n") for end in ends)
        assert statuses and set(statuses) == {200}
        assert (await scene.state())["serial"] == 21
        assert 5 < len(scene.started) < 15
        for raw in streams:
            raw.close()


async def asking_on(scene, statuses):
    """Send requests one after the other, each on a connection of its own."""
    while True:
        ask = {"model": "m", "prompt": "hi", "stream": False}
        statuses.append((await send(scene.started[0].url, "POST", "/api/generate", ask)).status)
        await asyncio.sleep(0.01)


# --- what is noticed -------------------------------------------------------------------------------------------------


def by_editing(file):
    file.write_text(file.read_text() + "# more\n")


def by_moving(file):
    new = file.with_suffix(".new")
    new.write_text(file.read_text() + "# more\n")
    os.replace(new, file)


def by_deleting_and_creating(file):
    text = file.read_text()
    file.unlink()
    file.write_text(text + "# more\n")


def by_links(file):
    """As Kubernetes does it for a ConfigMap: a new folder, and a link to it that is swapped."""
    data = file.parent / "..data"
    folder = file.parent / "..later"
    folder.mkdir()
    (folder / file.name).write_text(file.read_text() + "# more\n")
    link = file.parent / "..data_tmp"
    link.symlink_to(folder.name)
    os.replace(link, data)


def linked(file):
    """Replace a file by a link into a folder that a link names."""
    first = file.parent / "..first"
    first.mkdir()
    (first / file.name).write_text(file.read_text())
    (file.parent / "..data").symlink_to(first.name)
    file.unlink()
    file.symlink_to(Path("..data") / file.name)


@pytest.mark.parametrize("name", ["router.yaml", "teams/one.yaml", "teams/hash"])
@pytest.mark.parametrize(
    "change", [by_editing, by_moving, by_deleting_and_creating, by_links], ids=lambda f: f.__name__
)
async def test_every_way_of_replacing_a_file_is_noticed_d5(tmp_path, change, name):
    """Within two seconds, and once: that of all, one of a team, and one with a hash."""
    (tmp_path / "teams").mkdir()
    (tmp_path / "teams" / "hash").write_text("a" * 64)
    (tmp_path / "teams" / "one.yaml").write_text("team: one\nkeys: [{ id: x, sha256_file: hash }]\n")
    file = tmp_path / "router.yaml"
    file.write_text("teams: teams/*.yaml\n")
    if change is by_links:
        linked(tmp_path / name)
    config = load_config(file, env={})
    noticed, looks = asyncio.Event(), []

    def files():
        looks.append(None)
        return watched_files(config, file)

    watching = asyncio.create_task(watch(files, noticed.set))
    while not looks:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(POLL_S / 2)
    before = len(looks)
    change(tmp_path / name)
    async with asyncio.timeout(BUSY_S):
        await noticed.wait()
    assert (len(looks) - before) * POLL_S <= NOTICED_S
    watching.cancel()


async def test_a_new_team_and_one_that_is_gone_are_noticed_d5(tmp_path):
    """Though neither file was there, or is there, to be looked at."""
    (tmp_path / "teams").mkdir()
    (tmp_path / "teams" / "one.yaml").write_text("team: one\n")
    file = tmp_path / "router.yaml"
    file.write_text("teams: teams/*.yaml\n")
    config, noticed = load_config(file, env={}), asyncio.Queue()
    watching = asyncio.create_task(watch(lambda: watched_files(config, file), lambda: noticed.put_nowait(None)))
    async with asyncio.timeout(BUSY_S):
        await asyncio.sleep(POLL_S / 2)
        (tmp_path / "teams" / "two.yaml").write_text("team: two\n")
        await noticed.get()
        (tmp_path / "teams" / "one.yaml").unlink()
        await noticed.get()
    watching.cancel()
    assert noticed.empty()
