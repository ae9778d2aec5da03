"""Placement that somebody asked for (num_gpu), told by the whole router in front of the simulated Ollama."""

import pytest

from tests.routing.test_dispatch import MIDDLE, SMALL, asked, hello, play, residents, world


def create(model, from_, **parameters):
    return {"model": model, "from": from_, "parameters": parameters, "stream": False}


@pytest.mark.parametrize("where", ["Modelfile", "request"])
def test_a_model_for_the_cpu_is_answered_and_evicts_nothing(where):
    """The reason says who asked for it; nothing is learned, so the plain tag is served as before."""

    async def story(one):
        await one.ask(hello(MIDDLE, tokens=1))
        await one.ask(create("llama-cpu", SMALL, num_gpu=0), "/api/create")
        await world(one).installed.refresh()
        body = hello("llama-cpu") if where == "Modelfile" else hello(SMALL, options={"num_gpu": 0})
        assert (await one.ask(body)).status == 200
        (decision,) = [
            row for row in one.router.router.inspector.decisions() if row.get("reason", "").startswith("on ")
        ]
        asks = "its Modelfile" if where == "Modelfile" else "the request"
        assert decision["reason"] == f"on the CPU as {asks} asks"
        assert MIDDLE in residents(one)
        assert one.evictions == []
        assert (await one.ask(hello(SMALL))).status == 200
        assert MIDDLE in residents(one)

    play(story)


def test_a_part_on_the_gpu_is_named_and_passed_on_with_the_clients_options():
    """Ten layers: the number reaches Ollama, and no other option of ours."""

    async def story(one):
        assert (await one.ask(hello(SMALL, options={"num_gpu": 10}))).status == 200
        (body,) = asked(one, "/api/generate")
        assert body["options"] == {"num_gpu": 10}
        reasons = [row["reason"] for row in one.router.router.inspector.decisions() if "reason" in row]
        assert reasons == ["10 of 29 layers on the GPU as the request asks"]

    play(story)


@pytest.mark.parametrize("layers", [-1, 29, 99, 999])
def test_all_layers_on_the_gpu_are_no_request_for_a_part(layers):
    """Many clients send num_gpu 99: the model is loaded and verified as always."""

    async def story(one):
        assert (await one.ask(hello(SMALL, options={"num_gpu": layers}))).status == 200
        load, request = asked(one, "/api/generate")
        assert load["options"] == request["options"] == {"num_ctx": 32768, "num_batch": 512}

    play(story)
