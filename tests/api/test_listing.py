"""Lists of models as clients see them: chains are added, derived tags hidden, expiries corrected."""

import json

import pytest

from router.api import listing
from router.core.ollama.derived_names import NAMESPACE
from router.core.teams.rights import TRUSTED, permit_of
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine
from tests.routing.scene import routed

EVERYTHING = permit_of(TRUSTED.team)
TAG = f"{NAMESPACE}/small:3b-d1"
CHAINS = {
    "defaults.auto_chains": "off",
    "chains": {"team": [BIG.name, SMALL.name], "pro:7b": [SMALL.name], "ghost": ["absent:1b"]},
}


@pytest.fixture(autouse=True)
def _way():
    """Nothing here is taken by an edge: once is enough."""


def listed(story, machine=None, options=CHAINS):
    """Run `story(directory)`, which awaits nothing, where some chains are configured."""

    async def run(scene):
        story(scene.directory)

    routed(run, machine or MemoryMachine(BIG, MIDDLE, SMALL), options)


def tags(*rows):
    return json.dumps({"models": list(rows)}).encode()


def row(name, *capabilities, **more):
    return {"name": name, "model": name, "digest": f"d-{name}", "capabilities": list(capabilities), **more}


def test_each_chain_is_listed_as_its_best_installed_variant_with_what_all_variants_can_do():
    """What is promised must hold whichever one serves; a chain without one is not listed."""

    def story(directory):
        body = tags(row(BIG.name, "completion", "tools", "vision"), row(SMALL.name, "completion", "tools"))
        rows = {one["name"]: one for one in json.loads(listing.tags(body, directory, EVERYTHING))["models"]}
        assert set(rows) == {BIG.name, SMALL.name, "team:latest", "pro:7b"}
        assert (rows["team:latest"]["digest"], rows["team:latest"]["model"]) == (f"d-{BIG.name}", "team:latest")
        assert rows["team:latest"]["capabilities"] == ["completion", "tools"]
        assert rows["pro:7b"]["digest"] == f"d-{SMALL.name}"

    listed(story)


def test_an_old_server_that_lists_no_capabilities_gets_none_added():
    """Odd ones count as none."""

    def story(directory):
        odd = {"name": BIG.name, "capabilities": "many"}
        (*_, added) = json.loads(listing.tags(tags(odd, {"name": SMALL.name}), directory, EVERYTHING))["models"]
        assert added["name"] == "pro:7b"
        assert "capabilities" not in added

    listed(story)


def test_a_chain_that_is_installed_by_now_is_listed_once():
    """The list is newer than the catalog."""

    def story(directory):
        body = tags(row("team:latest"), row(BIG.name), row(SMALL.name))
        names = [one["name"] for one in json.loads(listing.tags(body, directory, EVERYTHING))["models"]]
        assert names.count("team:latest") == 1

    listed(story)


def test_derived_tags_are_not_listed():
    """Nobody shall use them by name."""

    def story(directory):
        body = tags(row(MIDDLE.name), row(TAG))
        assert [one["name"] for one in json.loads(listing.tags(body, directory, EVERYTHING))["models"]] == [MIDDLE.name]
        models = json.dumps({"object": "list", "data": [{"id": TAG}, {"id": MIDDLE.name}]}).encode() + b"\n"
        shown = listing.models(models, directory, EVERYTHING)
        assert json.loads(shown) == {"object": "list", "data": [{"id": MIDDLE.name}]}
        assert shown.endswith(b"}\n")

    listed(story, options={})


def test_chains_are_listed_on_v1_as_well():
    """With the fields of their best variant."""

    def story(directory):
        body = json.dumps({"data": [{"id": SMALL.name, "owned_by": "library"}]}).encode()
        rows = json.loads(listing.models(body, directory, EVERYTHING))["data"]
        assert rows[1:] == [{"id": "team:latest", "owned_by": "library"}, {"id": "pro:7b", "owned_by": "library"}]

    listed(story)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[1]",
        b'{"other":[]}',
        b'{"models":"none","data":3}',
        b'{"models":[1],"data":[2]}',
        b'{"models":null,"data":null}',
        b'{"models": [ {"name": "middle:14b"} ]}',
    ],
)
def test_where_nothing_is_to_be_changed_the_upstreams_bytes_are_the_answer(body):
    """Also where they are not what we expect."""

    def story(directory):
        for view in (listing.tags, listing.models, listing.running):
            assert view(body, directory, EVERYTHING) == body

    listed(story, options={"defaults.auto_chains": "off"})


ODD_NAMES = b'{"models": [ {"name": 7}, {"name": "not a name"}, {} ], "data": [ {"id": [] } ]}'


def test_rows_without_a_name_are_listed_as_they_are():
    """Nothing is known of them."""

    def story(directory):
        assert (
            listing.tags(ODD_NAMES, directory, EVERYTHING)
            == listing.models(ODD_NAMES, directory, EVERYTHING)
            == ODD_NAMES
        )

    listed(story, options={"defaults.auto_chains": "off"})


def test_rows_without_a_name_are_shown_by_ps_as_they_are():
    """A fault of the server is not one of the client."""

    def story(directory):
        assert listing.running(ODD_NAMES, directory, EVERYTHING) == ODD_NAMES

    listed(story, options={"defaults.auto_chains": "off"})


def test_a_name_that_is_none_is_listed_as_it_is():
    """An odd server's row does no harm to the others."""

    def story(directory):
        body = tags(row("not a name"), row(SMALL.name))
        names = [one["name"] for one in json.loads(listing.tags(body, directory, EVERYTHING))["models"]]
        assert names == ["not a name", SMALL.name, "team:latest", "pro:7b"]

    listed(story)


def test_ps_shows_variants_under_their_own_names_with_the_expiry_that_clients_asked_for():
    """Derived tags too; the rest of a row stays."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        scene.backend.installed.derive(TAG, SMALL.name)
        scene.backend.keepalive.apply(tracked, -1.0)
        body = tags(row(TAG, expires_at="soon", size=7), row(MIDDLE.name, expires_at="later"))
        small, middle = json.loads(listing.running(body, scene.directory, EVERYTHING))["models"]
        assert (small["name"], small["model"], small["size"]) == (SMALL.name, SMALL.name, 7)
        assert (small["expires_at"], middle["expires_at"]) == ("soon", "later")
        own = tags(row(SMALL.name, expires_at="soon"))
        (small,) = json.loads(listing.running(own, scene.directory, EVERYTHING))["models"]
        assert small["expires_at"] == "2318-01-01T00:00:00Z"

    routed(story, MemoryMachine(BIG, MIDDLE, SMALL), CHAINS)


def test_the_show_of_a_chain_names_the_variant_as_its_parent():
    """Odd answers stay as they are."""
    body = b'{"details":{"parent_model":"","family":"llama"},"license":"x"}'
    shown = json.loads(listing.show_of_chain(body, SMALL.name))
    assert shown == {"details": {"parent_model": SMALL.name, "family": "llama"}, "license": "x"}
    for odd in (b"", b"[]", b"{}", b'{"details":1}'):
        assert listing.show_of_chain(odd, SMALL.name) == odd


def test_the_model_of_a_chain_has_the_chains_name():
    """On `/v1/models/:model`."""
    assert json.loads(listing.model_of(b'{"id":"small:3b","object":"model"}\n', "team")) == {
        "id": "team",
        "object": "model",
    }
    for odd in (b"", b"[]", b"{}"):
        assert listing.model_of(odd, "team") == odd


def test_of_several_lists_those_that_cannot_be_read_are_left_out(monkeypatch):
    """If none can be read, the first answer stays as it is. Long lists are read in steps, with the same result."""

    def story(directory):
        (source,) = directory.sources("tags")

        def merged(*bodies):
            return listing.merging("tags", [(source, body) for body in bodies], directory, EVERYTHING)()

        good = tags(row(SMALL.name, "completion"))
        assert merged(b"odd", b"[]") == b"odd"
        assert merged(b"odd", good) == merged(good, b"[]") == merged(good)
        monkeypatch.setattr(listing, "LONG_BYTES", 20)
        assert json.loads(merged(b"odd", good)) == json.loads(merged(good))
        assert merged(b"odd" * 20, b"[1,2,3,4,5,6,7,8,9,0,1,2,3]") == b"odd" * 20

    listed(story)
