"""Memory that is reserved for teams: which residents a request may not evict because of another team's floor. Pure.

What a resident holds is attributed in equal parts to the teams that use it. It does not go for others if that would
leave one of these teams less than its floor: models are whole, so a team may keep more than the floor, never less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from router.core.decision.snapshot import Resident, Snapshot


def held_by_team(residents: Iterable[Resident]) -> dict[str, int]:
    """Return the bytes that each team holds."""
    held: dict[str, int] = {}
    for resident in residents:
        for team in resident.users:
            held[team] = held.get(team, 0) + _part_bytes(resident)
    return held


def reserving(snapshot: Snapshot, asking: str, floors: Mapping[str, int]) -> Snapshot:
    """Return the snapshot as a request of the team `asking` finds it; `floors` are those of all teams, in bytes."""
    if not any(resident.users for resident in snapshot.residents):
        return snapshot
    held = held_by_team(snapshot.residents)

    def is_reserved(resident: Resident) -> bool:
        after = {team: held[team] - _part_bytes(resident) for team in resident.users if team != asking}
        return any(left_bytes < floors.get(team, 0) for team, left_bytes in after.items())

    residents = tuple(replace(one, is_reserved=True) if is_reserved(one) else one for one in snapshot.residents)
    return replace(snapshot, residents=residents)


def _part_bytes(resident: Resident) -> int:
    return sum(resident.held_bytes.values()) // len(resident.users)
