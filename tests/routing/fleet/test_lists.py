"""Names and models of several backends: what lists and versions show, and where models are managed."""

from __future__ import annotations

import asyncio
import hashlib

from router.routing.directory import Managed
from router.routing.fleet.managed import MOST_BLOBS
from tests.config.keys.play import BIG, MIDDLE, SMALL, connect, hello, send
from tests.routing.fleet.stage import play
from tests.routing.fleet.test_away import lose

DESK_TOWER = {"desk": (12288,), "tower": (24564,)}
OWN = {"desk": (SMALL,), "tower": (BIG, MIDDLE)}
ALONE = {"defaults.auto_chains": "off"}


async def manage(one, path, body, backend=""):
    """Return the status and the backend of a request that manages models."""
    headers = [("X-Router-Backend", backend)] if backend else []
    reply = await send(one.router.url, "POST", path, body, headers)
    return reply.status, reply.headers.get("x-router-backend", "")


async def upload(one, data, backend=""):
    """Upload a blob; return its digest and the backend that has it now."""
    digest = f"sha256:{hashlib.sha256(data.encode()).hexdigest()}"
    headers = [("X-Router-Backend", backend)] if backend else []
    raw = await connect(one.router.url)
    reply = await raw.ask("POST", f"/api/blobs/{digest}", data, headers)
    raw.close()
    assert reply.status == 201
    return digest, reply.headers["x-router-backend"]


def test_lists_and_the_version_name_every_backend_if_none_answers():
    """An empty list would say that no model is installed."""

    async def story(one):
        await asyncio.gather(*(lose(one, name) for name in DESK_TOWER))
        for path in ("/api/tags", "/v1/models", "/api/ps", "/api/version"):
            reply = await one.get(path)
            assert (path, reply.status) == (path, 502)
            assert all(f"{name}: cannot reach".encode() in reply.body for name in DESK_TOWER)

    play(story, DESK_TOWER, ALONE, models=OWN)


def test_the_version_is_the_lowest_of_the_backends_that_answer():
    """By number: 0.9 is lower than 0.13."""

    async def story(one):
        assert (await one.get("/api/version")).json() == {"version": "0.9.6"}
        await lose(one, "desk")
        assert (await one.get("/api/version")).json() == {"version": "0.13.1"}

    versions = {"desk": "0.9.6", "tower": "0.13.1"}
    play(story, DESK_TOWER, ALONE, models=OWN, versions=versions)


def test_show_without_a_name_is_refused_by_a_backend_that_answers():
    """In Ollama's own words, also while the first backend is away."""

    async def story(one):
        refused = await send(one.router.url, "POST", "/api/show", {})
        await lose(one, "desk")
        again = await send(one.router.url, "POST", "/api/show", {})
        assert (again.status, again.json()) == (refused.status, refused.json())
        assert refused.status // 100 == 4

    play(story, DESK_TOWER, ALONE, models=OWN)


def test_show_says_not_found_for_an_unknown_name_and_for_a_chain_of_which_nothing_is_installed():
    """On no backend."""

    async def story(one):
        for name in ("unknown:1b", "empty"):
            status, _, reply = await one.ask({"model": name}, "/api/show")
            assert (status, reply.json()["error"]) == (404, f"model '{name}' not found")

    play(story, DESK_TOWER, {**ALONE, "chains": {"empty": ["missing:1b"]}}, models=OWN)


def test_show_of_a_chain_is_answered_by_the_backend_that_would_serve_it():
    """By the tower as long as it is there, else by the desk with the smaller variant."""

    async def story(one):
        assert (await one.ask({"model": "best"}, "/api/show"))[:2] == (200, "tower")
        await lose(one, "tower")
        assert (await one.ask({"model": "best"}, "/api/show"))[:2] == (200, "desk")

    play(story, DESK_TOWER, {**ALONE, "chains": {"best": [BIG, SMALL]}}, models=OWN)


def test_a_pull_goes_where_the_model_is_a_new_one_to_the_biggest_cards_or_where_a_header_says():
    """The desk is named first; an update of what it alone has stays there."""

    async def story(one):
        assert (await manage(one, "/api/pull", {"model": SMALL}))[1] == "desk"
        assert (await manage(one, "/api/pull", {"model": BIG}))[1] == "tower"
        assert (await manage(one, "/api/pull", {"model": "new:1b"}))[1] == "tower"
        assert (await manage(one, "/api/pull", {"model": "new:1b"}, "desk"))[1] == "desk"

    play(story, DESK_TOWER, ALONE, models=OWN)


def test_a_pull_goes_to_the_biggest_cards_that_answer():
    """Also of a model that only the lost backend has: it is a new one on the other."""

    async def story(one):
        await lose(one, "tower")
        for name in ("new:1b", BIG):
            assert (await manage(one, "/api/pull", {"model": name}))[1] == "desk"

    play(story, DESK_TOWER, ALONE, models=OWN)


def test_management_of_a_backend_that_is_asked_for_and_away_is_not_done_elsewhere():
    """The copy would appear where nobody wanted it."""

    async def story(one):
        await lose(one, "tower")
        status, _ = await manage(one, "/api/copy", {"source": SMALL, "destination": "copy:1"}, "tower")
        assert status == 502
        assert {row["name"] for row in (await one.get("/api/tags")).json()["models"]} == {SMALL}

    play(story, DESK_TOWER, ALONE, models={"desk": (SMALL,), "tower": (SMALL,)})


def test_a_model_that_was_copied_can_be_asked_for_at_once():
    """On the backend that has it."""

    async def story(one):
        assert await manage(one, "/api/copy", {"source": SMALL, "destination": "copy:1"}) == (200, "desk")
        assert (await one.ask(hello("copy:1")))[:2] == (200, "desk")

    play(story, DESK_TOWER, ALONE, models=OWN)


def test_a_creation_goes_where_its_files_went():
    """New files go to the biggest cards, or where a header says; the creation follows them without one."""

    async def story(one):
        for backend, data in (("", "a first file"), ("desk", "a second file")):
            digest, where = await upload(one, data, backend)
            assert where == (backend or "tower")
            assert digest in one.sims[where].library.blobs
            assert (await manage(one, "/api/create", {"model": "new:1b", "files": {"x.gguf": digest}}))[1] == where

    play(story, DESK_TOWER, ALONE, models=OWN)


def test_a_creation_goes_where_its_base_is_once_the_backend_with_its_files_is_away():
    """The one that has the files cannot be asked."""

    async def story(one):
        digest, where = await upload(one, "an adapter")
        assert where == "tower"
        await lose(one, "tower")
        body = {"model": "new:1b", "from": SMALL, "adapters": {"x.gguf": digest}}
        assert (await manage(one, "/api/create", body))[1] == "desk"

    play(story, DESK_TOWER, ALONE, models=OWN)


def test_where_files_went_is_remembered_of_the_last_uploads_only():
    """Clients can upload any number of them."""

    async def story(one):
        directory = one.router.router.routes.directory
        digests = [f"sha256:{number:064x}" for number in range(MOST_BLOBS + 1)]
        for digest in digests:
            directory.targets(Managed("blob_put", {}, frozenset((digest,))), "desk")

        def goes_to(digest):
            return [one.name for one in directory.targets(Managed("create", {"model": "new:1b"}, frozenset((digest,))))]

        assert [goes_to(digest) for digest in (digests[0], digests[1], digests[-1])] == [["tower"], ["desk"], ["desk"]]

    play(story, DESK_TOWER, ALONE, models=OWN)
