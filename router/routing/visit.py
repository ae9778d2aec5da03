"""Where one request is among several backends, and where it has been."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.core.payload.conversation import conversation_of


@dataclass(slots=True)
class Visit:
    """`place` is the backend that has the request now, "" while none has been chosen; since when, by the loop's time.

    `failed` are the backends that have failed it, in order; it is not sent there again.
    """

    place: str = ""
    since_s: float = 0.0
    failed: list[str] = field(default_factory=list)
    moves: int = 0
    known_conversation: int | None = None

    def conversation(self, body: bytes) -> int:
        """Return the number of the conversation that its body continues, which is read once."""
        if self.known_conversation is None:
            self.known_conversation = conversation_of(body)
        return self.known_conversation

    def enter(self, place: str, now_s: float) -> None:
        """Record that a backend has it now."""
        self.place, self.since_s = place, now_s

    def leave(self, *, has_failed: bool = False) -> None:
        """Record that no backend has it any more."""
        if has_failed:
            self.failed.append(self.place)
        self.place = ""
        self.moves += 1
