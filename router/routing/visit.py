"""Where one request is among several backends, and where it has been."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.core.decision.fleet.passed_over import NOT_PASSED_OVER, PassedOver
from router.core.payload.conversation import conversation_of


@dataclass(slots=True)
class Visit:
    """`place` is the backend that has the request now, "" while none has been chosen; since when, by the loop's time.

    `failed` are the backends that have failed it or, those in `declined`, have declined it, in order; it is not sent
    there again. `passed_over` is why the first variant of its chain was not to serve when the backend was chosen.
    """

    place: str = ""
    since_s: float = 0.0
    failed: list[str] = field(default_factory=list)
    moves: int = 0
    declined: list[str] = field(default_factory=list)
    known_conversation: int | None = None
    passed_over: PassedOver = NOT_PASSED_OVER

    def conversation(self, body: bytes) -> int:
        """Return the number of the conversation that its body continues, which is read once."""
        if self.known_conversation is None:
            self.known_conversation = conversation_of(body)
        return self.known_conversation

    def pass_over(self, passed_over: PassedOver) -> None:
        """Record why no backend is to serve it by the first variant of its chain."""
        self.passed_over = passed_over

    def enter(self, place: str, now_s: float) -> None:
        """Record that a backend has it now."""
        self.place, self.since_s = place, now_s

    def decline(self) -> None:
        """Record that the node that has it does not take it: it is not sent there again, but nothing has failed."""
        place = self.place
        self.leave(has_failed=True)
        self.declined.append(place)

    @property
    def lost(self) -> list[str]:
        """The backends that have failed it. Those that declined it can still be asked to do what they can."""
        return [name for name in self.failed if name not in self.declined]

    @property
    def failures(self) -> int:
        """How often it has failed somewhere."""
        return len(self.lost)

    def leave(self, *, has_failed: bool = False) -> None:
        """Record that no backend has it any more."""
        if has_failed and self.place in self.declined:
            self.declined.remove(self.place)
        elif has_failed:
            self.failed.append(self.place)
        self.place = ""
        self.moves += 1
