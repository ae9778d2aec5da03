"""`clients`: what requests may ask for."""

import asyncio

import pytest

from router.core.teams.keys import digest_of, make_key
from tests.config.keys.play import ALONE, BIG, SMALL, compare, compare_small, hello, residents, send

HEADER = "x-router-nothing-fits"
SHORT = {**ALONE, "defaults.keep_alive_s": 5}


@pytest.mark.key("clients.nothing_fits")
def test_a_request_may_choose_the_rules_in_nothing_fits():
    """For a model that does not fit: to spill is allowed, or refused with the name of the key."""

    async def story(one):
        found = []
        for rule in ("allow_partial", "passthrough", "refuse"):
            reply = await send(one.router.url, "POST", "/api/generate", hello(BIG), [(HEADER, rule)])
            found.append(reply.status)
        return found, reply.json()["error"]

    values = [["refuse", "wait", "allow_partial", "passthrough"], ["refuse", "passthrough"], []]
    found = compare(story, "clients.nothing_fits", values, {"defaults.auto_chains": "off"}, cards=(8192,))
    assert [statuses for statuses, _ in found] == [[200, 200, 503], [403, 200, 503], [403, 403, 403]]
    assert found[-1][1] == "X-Router-Nothing-Fits: refuse is not allowed on this router (clients.nothing_fits)"


@pytest.mark.key("clients.keep_alive_forever")
@pytest.mark.parametrize("value", [-1, "-1s", "-5m", "2562047h"])
@pytest.mark.parametrize("more", [{}, {"think": False}, {"Keep_Alive": 5, "raw": True}])
def test_an_endless_keep_alive_is_allowed_ignored_or_refused(value, more):
    """In any spelling: after 20 s the model is still loaded, or not, as without one; or it was never loaded."""

    async def story(one):
        body = hello(SMALL, **more, keep_alive=value)
        reply = await send(one.router.url, "POST", "/api/generate", body)
        await asyncio.sleep(20)
        return reply.status, residents(one)

    found = compare_small(story, "clients.keep_alive_forever", ["allow", "ignore", "refuse"], SHORT)
    assert found == [(200, [SMALL]), (200, []), (403, [])]


@pytest.mark.key("clients.keep_alive_forever")
def test_other_keep_alives_are_as_they_were():
    """Fifteen seconds, with each value of the key."""

    async def story(one):
        await send(one.router.url, "POST", "/api/generate", hello(SMALL, keep_alive="15s"))
        await asyncio.sleep(10)
        loaded = residents(one)
        await asyncio.sleep(10)
        return loaded, residents(one)

    found = compare_small(story, "clients.keep_alive_forever", ["allow", "ignore", "refuse"], SHORT)
    assert found == [([SMALL], [])] * 3


@pytest.mark.key("clients.num_gpu")
@pytest.mark.parametrize("more", [{}, {"think": False}])
def test_num_gpu_is_allowed_ignored_or_refused(more):
    """Allowed it puts the model on the CPU; ignored, the model is on the card, with the other options."""

    async def story(one):
        body = hello(SMALL, options={"num_gpu": 0, "num_ctx": 4096}, **more)
        reply = await send(one.router.url, "POST", "/api/generate", body)
        rows = one.sim.engine.ps()
        return reply.status, [(row.size_vram_bytes > 0, row.context_length) for row in rows]

    found = compare_small(story, "clients.num_gpu", ["allow", "ignore", "refuse"])
    assert found == [(200, [(False, 4096)]), (200, [(True, 4096)]), (403, [])]


def manager(folder):
    """A team with a key that may manage every model; return the configuration and the header with the key."""
    key = make_key("ops", "0123456789abcdefghijABCDEFGHIJxy")
    digest = digest_of(key.encode()).hex()
    rights = "rights: [infer, read, manage]\nmanage_models: ['*']\n"
    (folder / "ops.yaml").write_text(f"team: ops\nkeys: [{{ id: ci, sha256: {digest} }}]\n{rights}")
    return {**ALONE, "teams": str(folder / "*.yaml")}, ("x-api-key", key)


@pytest.mark.key("clients.registries")
def test_a_team_pulls_from_the_registries_only(tmp_path):
    """Names without a host are of registry.ollama.ai; what the list lacks is a 403 that names the key."""
    config, header = manager(tmp_path)

    async def story(one):
        found = []
        for name in ("llama3.2:1b", "models.lan:5000/a/b"):
            reply = await send(one.router.url, "POST", "/api/pull", {"model": name, "stream": False}, [header])
            found.append(reply.status == 403 and "clients: {registries" in reply.json()["error"])
        return found

    values = [["registry.ollama.ai", "models.lan:5000"], ["Models.LAN:5000"], []]
    found = compare_small(story, "clients.registries", values, config)
    assert found == [[False, False], [True, False], [True, True]]


@pytest.mark.key("clients.remote_hosts")
def test_a_team_creates_models_of_the_remote_hosts_only(tmp_path):
    """Requests to them would leave the network."""
    config, header = manager(tmp_path)

    async def story(one):
        found = []
        for host in ("https://ollama.com", "https://evil.example"):
            body = {"model": "ours", "from": SMALL, "remote_host": host, "stream": False}
            reply = await send(one.router.url, "POST", "/api/create", body, [header])
            found.append(reply.status == 403 and "clients: {remote_hosts" in reply.json()["error"])
        return found

    found = compare_small(story, "clients.remote_hosts", [[], ["ollama.com"]], config)
    assert found == [[True, True], [False, True]]
