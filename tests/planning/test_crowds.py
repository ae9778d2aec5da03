"""Teams that use one server at the same time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ollama_simulator.clock import run_virtual
from ollama_simulator.server import SimConfig
from router.planning.crowds import Crowd, Got, got, play_crowds, write_teams
from router.planning.stage import Reply, stage

SMALL = "llama3.2:3b"


def test_crowds_ask_until_the_end_and_what_is_under_way_then_is_counted() -> None:
    """Two clients without a pause, and one request every three seconds; the last ones are not answered."""
    crowds = (Crowd("busy", SMALL, clients=2), Crowd("rare", SMALL, every_s=3), Crowd("late", "unknown", clients=1))

    async def story() -> dict[str, list[Reply]]:
        async with stage(SimConfig(models=(SMALL,)), None) as one:
            return await play_crowds(one, crowds, 10)

    replies = run_virtual(story())
    busy, rare, late = (got(replies[crowd.team]) for crowd in crowds)
    assert busy.requests - busy.served == 2
    assert busy.served > 4
    assert busy.failed == rare.failed == 0
    assert rare.requests == 4
    assert late.failed >= 9
    assert late.served == 0


def test_what_a_team_got_counts_waits_that_have_not_ended() -> None:
    """A flood that locks a team out makes no figure better."""
    answered = Reply("m", "m", 200, 3.0, 3.0, 60.0, service_s=2.0)
    replies = [answered, Reply("m", "", 0, 90.0, 90.0, 0.0, "not answered"), Reply("m", "", 503, 1.0, 1.0, 0.0, "busy")]
    assert got(replies) == Got(requests=3, failed=1, served=1, served_s=2.0, p50_s=90.0, p99_s=90.0)
    assert got([]) == Got(0, 0, 0, 0, 0.0, 0.0)


def test_files_of_teams_hold_shares_and_hashes_of_the_keys_that_clients_show(tmp_path: Path) -> None:
    """One file each, and no key in any of them."""
    crowds = (Crowd("one", SMALL, share=3), Crowd("two", SMALL))
    assert write_teams(tmp_path, crowds) == str(tmp_path / "*.yaml")
    one = json.loads((tmp_path / "one.yaml").read_text())
    assert (one["team"], one["share"]) == ("one", 3)
    shown = dict(crowds[0].headers)[b"authorization"].removeprefix(b"Bearer ")
    assert one["keys"][0]["sha256"] == hashlib.sha256(shown).hexdigest()
    assert shown.decode() not in (tmp_path / "one.yaml").read_text()
