"""What an operator sees of several backends at once."""

from __future__ import annotations

from router.core.decision.snapshot import ALL_WEIGHTS
from tests.config.keys.play import SMALL
from tests.routing.fleet.stage import play


def test_what_is_not_loaded_for_now_is_named_with_its_backend() -> None:
    """A pause of one backend is not one of the other."""

    async def story(one):
        place = one.router.router.routes.places[1]
        place.backend.world.bar(ALL_WEIGHTS, 60.0, "it is odd")
        barred = [{"model": None, "why": "it is odd", "for_s": 60, "backend": "b"}]
        assert one.router.router.inspector.barred() == barred
        assert (await one.admin("/router/state"))["barred"] == barred

    play(story, {"a": (24564,), "b": (24564,)}, models=(SMALL,))
