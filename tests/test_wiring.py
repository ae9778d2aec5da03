"""The warnings at start, from the whole router in front of the simulated Ollama."""

from __future__ import annotations

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.server import SimConfig
from router.config import load_config
from router.core.ollama.options import ServerSettings
from router.planning.stage import stage
from router.wiring import version_warnings, warnings


def warned(version: str = "0.33.0", **options: object) -> list[str]:
    """Return the warnings of a router that is configured with `options`, in front of an Ollama of `version`."""

    async def story() -> list[str]:
        async with stage(SimConfig(settings=ServerSettings(version=version)), {}) as one:
            assert one.router is not None
            backend = one.router.router.backend
            return warnings(load_config(env={}, options=options), backend) + version_warnings(backend.world.version)

    return run_virtual(story())


def test_there_is_no_warning_on_loopback_in_front_of_a_new_ollama() -> None:
    """A warning is read because it is rare."""
    assert warned() == []


@pytest.mark.parametrize(("is_open", "may"), [(False, "infer and read"), (True, "do everything")])
def test_listening_beyond_loopback_warns_what_anonymous_clients_may_do_s5(is_open: bool, may: str) -> None:
    """There are no keys, so the address decides."""
    (text,) = warned(listen="0.0.0.0:11435", insecure_no_auth=is_open)
    assert text.endswith(f"anyone who can connect may {may}")


@pytest.mark.parametrize(
    ("version", "is_old"), [("0.16.3", True), ("0.17.0", True), ("0.17.1", False), ("0.0.0", False)]
)
def test_an_old_ollama_is_reported_with_its_vulnerability_s6(version: str, is_old: bool) -> None:
    """CVE-2026-7482 is fixed in 0.17.1; 0.0.0 is a development build."""
    assert any("CVE-2026-7482" in text for text in warned(version)) is is_old
