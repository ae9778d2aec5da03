"""The warnings at start, from the whole router in front of the simulated Ollama."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.server import SimConfig, SimulatedOllama
from router.app import running
from router.config import load_config, rulebook_of
from router.core.ollama.options import ServerSettings
from router.credentials import listener_tls
from router.errors import ConfigError
from router.planning.stage import stage
from router.telemetry import Event, Notified
from router.wiring import open_doors, remind, version_warnings, warnings
from tests.certificates import certificate, needs_openssl


def warned(version: str = "0.33.0", **options: object) -> list[str]:
    """Return the warnings of a router that is configured with `options`, in front of an Ollama of `version`."""

    async def story() -> list[str]:
        async with stage(SimConfig(settings=ServerSettings(version=version)), {}) as one:
            assert one.router is not None
            backend = one.router.router.backend
            return warnings(load_config(env={}, options=options), [backend]) + version_warnings(backend.world.version)

    return run_virtual(story())


def test_there_is_no_warning_on_loopback_in_front_of_a_new_ollama() -> None:
    """A warning is read because it is rare."""
    assert warned() == []


@pytest.mark.parametrize(("is_open", "may"), [(False, "infer and read"), (True, "do everything")])
def test_listening_beyond_loopback_warns_what_anonymous_clients_may_do_s5(is_open: bool, may: str) -> None:
    """There are no keys, so the address decides."""
    (text,) = warned(listen="0.0.0.0:11435", insecure_no_auth=is_open)
    assert text.endswith(f"anyone who can connect may {may}")


def test_behind_a_proxy_clients_come_from_elsewhere_s5() -> None:
    """Whatever address is listened on."""
    (text,) = warned(trusted_proxies=["127.0.0.1"])
    assert text.endswith("without keys: anyone who can connect may infer and read")


@pytest.mark.parametrize(
    ("rights", "ending"), [("[]", None), ("[infer]", "may infer"), ("[infer, manage]", "may infer and manage")]
)
def test_with_teams_what_the_default_team_may_do_counts_s5(rights: str, ending: str | None, tmp_path: Path) -> None:
    """A door that is locked is worth no warning."""
    (tmp_path / "a.yaml").write_text(f"team: guests\nrights: {rights}\n")
    found = warned(listen="0.0.0.0:11435", teams=str(tmp_path / "*.yaml"), default_team="guests")
    assert bool(found) is (ending is not None)
    assert ending is None or found[0].endswith(f"without a key: anyone who can connect {ending}")


@pytest.mark.parametrize("is_open", [False, True])
def test_insecure_no_auth_gives_clients_without_a_key_everything_s5(is_open: bool, tmp_path: Path) -> None:
    """Also beside teams, unless `default_team` names one of them."""
    (tmp_path / "a.yaml").write_text("team: guests\n")
    options: dict[str, object] = {"teams": str(tmp_path / "*.yaml"), "insecure_no_auth": is_open}
    for default in ("anonymous", "guests"):
        book = rulebook_of(load_config(env={}, options={**options, "default_team": default}))
        assert book.identities is not None
        team = book.identities.of_address("10.1.2.3").team
        assert (team.name, "admin" in team.rights) == (default, is_open and default == "anonymous")


def test_an_ssh_key_without_the_library_for_it_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its user would only see that the key is not known."""
    ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
    (tmp_path / "a.yaml").write_text(f'team: a\nkeys: [{{ id: laptop, ssh: "{ssh}" }}]\n')
    monkeypatch.setattr("router.wiring.verifier", lambda: None)
    (text,) = warned(teams=str(tmp_path / "*.yaml"))
    assert "ollama-router[ssh]" in text


@pytest.mark.parametrize("is_open", [False, True])
def test_a_warning_about_an_open_door_is_repeated_every_hour_s5(is_open: bool) -> None:
    """For as long as the router runs, with and without `insecure_no_auth`."""
    options = {"listen": "0.0.0.0:0", "admin": "127.0.0.1:0", "store.path": ":memory:", "insecure_no_auth": is_open}
    config = load_config(env={}, options=options)

    async def story() -> tuple[list[str], list[str]]:
        texts: list[str] = []
        async with running(config, probe=None, is_probed=True):
            tasks = [task.get_name() for task in asyncio.all_tasks()]
        reminding = asyncio.create_task(remind(lambda: open_doors(config), texts.append))
        await asyncio.sleep(2 * 3600 + 60)
        reminding.cancel()
        return tasks, texts

    tasks, texts = run_virtual(story())
    assert "reminders" in tasks
    assert len(texts) == 2
    assert "anyone who can connect" in texts[0]


def test_a_warning_about_an_open_door_ends_when_a_reload_has_closed_it() -> None:
    """What is found is asked for each time."""

    async def story() -> list[str]:
        texts: list[str] = []
        found = iter(([], ["open"], ["open"], [], []))
        reminding = asyncio.create_task(remind(lambda: next(found), texts.append, 10.0))
        await asyncio.sleep(45)
        reminding.cancel()
        return texts

    assert run_virtual(story()) == ["open", "open"]


@pytest.mark.parametrize("is_open", [False, True])
def test_an_admin_address_beyond_loopback_without_keys_is_reported_k4(is_open: bool) -> None:
    """With what that means."""
    (text,) = warned(admin="0.0.0.0:11436", insecure_no_auth=is_open)
    assert "without admin_keys" in text
    assert ("read and change everything" if is_open else "ollama-router keys new --admin") in text


@pytest.mark.parametrize(
    ("version", "is_old"), [("0.16.3", True), ("0.17.0", True), ("0.17.1", False), ("0.0.0", False)]
)
def test_an_old_ollama_is_reported_with_its_vulnerability_s6(version: str, is_old: bool) -> None:
    """CVE-2026-7482 is fixed in 0.17.1; 0.0.0 is a development build."""
    assert any("CVE-2026-7482" in text for text in warned(version)) is is_old


@pytest.mark.parametrize(
    ("version", "is_old"),
    [("0.5.13", True), ("0.6.3", True), ("0.6.4", False), ("0.9.3", False), ("", False), ("custom", False)],
)
def test_an_ollama_older_than_the_oldest_supported_one_is_reported(version: str, is_old: bool) -> None:
    """With the version that is; one that cannot be read is taken for a new one."""
    said = [text for text in version_warnings(version) if "oldest version that is supported" in text]
    assert bool(said) is is_old
    assert all("0.6.4" in text and version in text for text in said)


@pytest.mark.parametrize("version", ["9" * 5000 + ".1.1", "²..", "0.17", "1.2.3.4.5", "v0.33.0-rc1"])
def test_no_version_breaks_the_comparison(version: str) -> None:
    """It is whatever the server says."""
    assert version_warnings(version) == []


def test_the_version_is_reported_once_also_if_ollama_comes_later() -> None:
    """A restart of the same one is no news."""

    class Heard:
        def __init__(self) -> None:
            self.texts: list[str] = []

        def on(self, event: Event) -> None:
            if isinstance(event, Notified):
                self.texts.append(event.message)

    async def story() -> None:
        heard = Heard()
        sim = SimulatedOllama(SimConfig(settings=ServerSettings(version="0.6.3"), models=("llama3.2:3b",)))
        await sim.start()
        port = int(sim.url.rpartition(":")[2])
        await sim.stop()
        options = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "store.path": ":memory:"}
        options |= {"backends.local.url": sim.url, "backends.local.probe.kind": "none"}
        async with running(load_config(env={}, options=options), hooks=[heard]):
            for _ in range(2):
                again = SimulatedOllama(SimConfig(settings=ServerSettings(version="0.6.3"), models=("llama3.2:3b",)))
                await again.start(port=port)
                await asyncio.sleep(5)
                assert sum("oldest version" in text for text in heard.texts) == 1
                await again.stop()
                await asyncio.sleep(5)

    run_virtual(story())


@pytest.mark.parametrize("kind", ["pipe", "folder", "nothing", "text", "key of another"])
@pytest.mark.parametrize("key", ["cert", "key", "client_ca"])
@needs_openssl
def test_a_certificate_that_cannot_be_used_is_one_clear_line(kind: str, key: str, tmp_path: Path) -> None:
    """At the start, and at once: a pipe is not opened."""
    if (kind, key) == ("key of another", "client_ca"):
        return
    made, path = certificate(tmp_path), tmp_path / "other"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("no certificate")
    elif kind == "key of another":
        path.write_bytes(certificate(tmp_path, "two")[key == "key"].read_bytes())
    files = {"cert": str(made.cert), "key": str(made.key)} | {key: str(path)}
    options = {f"tls.{name}": value for name, value in files.items()}
    with pytest.raises(ConfigError) as caught:
        listener_tls(load_config(env={}, options=options))
    text = caught.value.message
    assert text.startswith("tls") and str(path) in text and "; allowed: " in text and "\n" not in text
