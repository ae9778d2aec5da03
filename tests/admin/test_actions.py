"""What an operator does to a running router: forgetting what loads have taught."""

import pytest

from router.admin.actions import Actions
from router.backend.setbacks import NO_GPU
from router.core.decision.snapshot import ALL_WEIGHTS
from router.core.decision.verdict import VerdictKind
from router.errors import BadRequest, ModelNotFound, ReloadRefused
from tests.admin.test_inspector import inspected
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine, weights_of

ALL = (BIG, MIDDLE, SMALL)


async def spill(scene, *models):
    """Let loads of `models` spill, each once."""
    scene.machine.vram_share = 0.5
    for facts in models:
        await scene.backend.residency.switch(scene.target(facts))
    scene.machine.vram_share = 1.0


def test_after_a_spill_the_state_names_what_is_not_loaded_until_when_and_forgetting_lifts_it():
    """For one model; what the others taught stays."""

    async def story(scene, inspector):
        await spill(scene, MIDDLE, SMALL)
        barred = {row["model"]: row for row in inspector.state()["barred"]}
        assert set(barred) == {MIDDLE.name, SMALL.name}
        assert barred[MIDDLE.name]["for_s"] == pytest.approx(3600, abs=60)
        assert "spilled at 32768 tokens" in barred[MIDDLE.name]["why"]
        assert scene.decide(MIDDLE).chosen.num_ctx < 32768
        assert await Actions([scene.backend]).forget(MIDDLE.name) == {"model": MIDDLE.name, "forgotten": 1}
        assert [row["model"] for row in inspector.state()["barred"]] == [SMALL.name]
        assert scene.decide(MIDDLE).chosen.num_ctx == 32768

    inspected(story)


def test_forgetting_all_lifts_a_bar_on_everything():
    """It is shown without a model."""

    async def story(scene, inspector):
        scene.backend.world.bar(ALL_WEIGHTS, 60.0, NO_GPU)
        scene.backend.world.bar(weights_of(BIG), 30.0, "it failed")
        assert inspector.state()["barred"] == [
            {"model": None, "why": NO_GPU, "for_s": 60},
            {"model": BIG.name, "why": "it failed", "for_s": 30},
        ]
        assert scene.decide(SMALL).verdicts[0].kind is VerdictKind.NO_GPU
        await Actions([scene.backend]).forget(None)
        assert inspector.state()["barred"] == []
        assert scene.decide(SMALL).verdicts[0].kind is VerdictKind.FITS

    inspected(story)


@pytest.mark.parametrize(("model", "error"), [("unknown:1b", ModelNotFound), ("not a name", BadRequest)])
def test_what_is_not_installed_cannot_be_forgotten(model, error):
    """A typing error must not look like success."""

    async def story(scene, _inspector):
        with pytest.raises(error):
            await Actions([scene.backend]).forget(model)

    inspected(story, MemoryMachine(*ALL))


def test_a_configuration_that_was_not_read_from_anywhere_cannot_be_read_again():
    """The operator is told, instead of that nothing has changed."""

    async def story(scene, _inspector):
        with pytest.raises(ReloadRefused, match="does not come from a file"):
            await Actions([scene.backend]).reload()

    inspected(story)
