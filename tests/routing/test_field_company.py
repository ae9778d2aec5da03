"""Two models on one card that are wanted in turn."""

from tests.config.keys.play import ALONE, MIDDLE, OTHER, chat, play, send, state

SIXTEEN_TURNS = (OTHER, MIDDLE) * 8


def test_a_pair_that_fits_at_a_smaller_context_ends_up_side_by_side():
    """A chat model and the one for retrieval: at the largest context each they would evict each other every time."""

    async def story(one):
        for model in SIXTEEN_TURNS:
            reply = await send(one.router.url, "POST", "/api/chat", {**chat(model), "stream": False})
            assert reply.status == 200
        residents = (await state(one))["residents"]
        assert {row["name"] for row in residents} == {OTHER, MIDDLE}
        assert all(row["context_length"] >= 8192 for row in residents)
        assert len(one.loads) <= 4

    play(story, ALONE)


def test_a_pair_whose_contexts_clients_name_takes_turns():
    """What a client names is a demand."""

    async def story(one):
        for model in SIXTEEN_TURNS[:6]:
            body = {**chat(model), "stream": False, "options": {"num_ctx": 32768}}
            assert (await send(one.router.url, "POST", "/api/chat", body)).status == 200
        assert all(row["context_length"] == 32768 for row in (await state(one))["residents"])
        assert len(one.loads) == 6

    play(story, ALONE)
