"""How much room nodes have, by the size of their cards: finds the best one for a load without a look at all. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from router.core.nodes.state import NodeState
from router.core.units import GIB

BESIDE, EVICTS = 0, 1
"""Room beside what is loaded, and with what is idle unloaded."""

FEW = 6
"""So many nodes are put in order when they are asked for; of more the first is soon found in the order of all."""

Room = tuple[int, int]


class Rooms:
    """The nodes by the size of their cards. `odd` are those with different cards, or whose free memory is unknown."""

    def __init__(self) -> None:
        self.odd: set[str] = set()
        self._sizes: dict[int, _Size] = {}
        self._where: dict[str, tuple[int, Room]] = {}

    def put(self, state: NodeState) -> None:
        """Take the room that a node has now."""
        self.remove(state.name)
        totals = {card.total_bytes for card in state.cards}
        if state.view.memory == "no_gpu" or not state.is_usable:
            return
        if state.view.memory != "probed" or len(totals) != 1:
            self.odd.add(state.name)
            return
        gib = round(totals.pop() / GIB)
        room = max(card.free_bytes for card in state.cards), max(card[1] + card[2] for card in state.cards)
        self._where[state.name] = gib, room
        self._sizes.setdefault(gib, _Size()).add(state.name, room, is_split=len(state.cards) > 1)

    def remove(self, name: str) -> None:
        """Forget a node."""
        self.odd.discard(name)
        where = self._where.pop(name, None)
        if where is None:
            return
        gib, room = where
        self._sizes[gib].remove(name, room)
        if not self._sizes[gib].names:
            del self._sizes[gib]

    def size_of(self, name: str) -> int | None:
        """Return the size of a node's cards in GiB, None for an odd one."""
        where = self._where.get(name)
        return where[0] if where is not None else None

    def with_room(self, kind: int, need_bytes: int) -> Iterator[int]:
        """Yield the sizes of which some node has so much room, the smallest first."""
        return (gib for gib in sorted(self._sizes) if self._sizes[gib].most(kind) >= need_bytes)

    def few_with_room(self, gib: int, kind: int, need_bytes: int) -> list[str] | None:
        """Return the nodes of a size that have so much room, None if they are more than a few."""
        return self._sizes[gib].few(kind, need_bytes)

    def those_with_room(self, names: Iterable[str], kind: int, need_bytes: int) -> Iterator[str]:
        """Yield those of `names` that have so much room."""
        where = self._where
        return (name for name in names if where[name][1][kind] >= need_bytes)

    def split_below(self, need_bytes: int) -> set[str]:
        """Return the nodes with several cards that are smaller each: they may take it together."""
        sizes = (size for gib, size in self._sizes.items() if gib * GIB <= need_bytes + GIB)
        return {name for size in sizes for name in size.several}


class _Size:
    """The nodes with cards of one size, sorted by their room of each kind."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.several: set[str] = set()
        self._rooms: tuple[list[tuple[int, str]], list[tuple[int, str]]] = ([], [])

    def add(self, name: str, room: Room, *, is_split: bool) -> None:
        self.names.add(name)
        if is_split:
            self.several.add(name)
        for kind in (BESIDE, EVICTS):
            insort(self._rooms[kind], (room[kind], name))

    def remove(self, name: str, room: Room) -> None:
        self.names.discard(name)
        self.several.discard(name)
        for kind in (BESIDE, EVICTS):
            rooms = self._rooms[kind]
            del rooms[bisect_left(rooms, (room[kind], name))]

    def most(self, kind: int) -> int:
        return self._rooms[kind][-1][0]

    def few(self, kind: int, need_bytes: int) -> list[str] | None:
        rooms = self._rooms[kind]
        first = bisect_left(rooms, (need_bytes, ""))
        return [name for _, name in rooms[first:]] if len(rooms) - first <= FEW else None
