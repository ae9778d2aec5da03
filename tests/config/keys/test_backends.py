"""`backends`: where the Ollama is, and which of its cards count."""

import pytest

from tests.config.keys.play import BIG, SMALL, cards, compare, get, hello, play


@pytest.mark.key("backends.*.gpus")
def test_only_the_cards_in_gpus_count():
    """By index or UUID; none at all means that requests pass unchanged."""

    async def story(one):
        sizes = [total_mib for _, total_mib, _ in await cards(one)]
        return sizes, (await one.ask(hello(BIG))).status

    values = ["auto", [0], [1], ["GPU-00000000-0000-0000-0000-000000000001"], "none"]
    found = compare(story, "backends.local.gpus", values, cards=(24564, 8192))
    assert found == [([24564, 8192], 200), ([24564], 200), ([8192], 503), ([8192], 503), ([], 200)]


@pytest.mark.key("backends.*.gpus")
def test_the_order_of_gpus_is_that_of_ollama():
    """Its first card is main_gpu 0, whatever index the probe gives it; the start of a UUID is enough."""

    async def story(one):
        return [total_mib for _, total_mib, _ in await cards(one)]

    values = [[1, 0], ["0", "1"], ["GPU-00000000-0000-0000-0000-000000000001", 0]]
    found = compare(story, "backends.local.gpus", values, cards=(24564, 8192))
    assert found == [[8192, 24564], [24564, 8192], [8192, 24564]]


@pytest.mark.key("backends.*.url")
def test_requests_go_to_the_ollama_at_url():
    """Each of two routers shows the models of its own."""

    async def story(one):
        rows = (await get(one.router.url, "/api/tags")).json()["models"]
        return [row["name"] for row in rows]

    assert [play(story, models=(name,)) for name in (SMALL, BIG)] == [[SMALL], [BIG]]
