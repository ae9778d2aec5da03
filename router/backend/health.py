"""Whether Ollama counts as up: `fall` failed readings in a row bring it down, `rise` good ones in a row up again."""

from __future__ import annotations


class Health:
    """Counts readings of `/api/ps`. Before the first reading it is down, and one good reading is enough."""

    def __init__(self, *, rise: int, fall: int) -> None:
        self.is_up = False
        self._rise, self._fall = rise, fall
        self._failures = 0
        self._has_been_up = False

    @property
    def is_doubtful(self) -> bool:
        """True if it is up and the last reading failed."""
        return self.is_up and self._failures > 0

    @property
    def readings_to_rise(self) -> int:
        """How many good readings in a row bring it up; 0 if it is up."""
        return 0 if self.is_up else self._rise if self._has_been_up else 1

    def note_success(self) -> bool:
        """Count as many good readings as are needed; return True if it was down."""
        was_down = not self.is_up
        self.is_up = self._has_been_up = True
        self._failures = 0
        return was_down

    def note_failure(self, *, is_certain: bool = False) -> bool:
        """Count a failed reading; return True if it goes down by it. `is_certain`: nothing listens there any more."""
        self._failures += 1
        if not self.is_up or not (is_certain or self._failures >= self._fall):
            return False
        self.is_up = False
        return True
