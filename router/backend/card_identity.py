"""Which of the probe's cards are Ollama's, and by which numbers.

The probe lists cards by PCI address; Ollama's `main_gpu` counts the cards that it sees, in the order of CUDA: fastest
first by default, or as CUDA_VISIBLE_DEVICES or a container says (ollama issue 7429). Nothing reports that order, so
the probe's is assumed, or that of `backends.NAME.gpus`, and loads correct it: memory that went to another card than
the one with that number, and a number that Ollama refuses. What was found is kept by UUID for as long as Ollama runs.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from router.config import Gpus
from router.core.ollama.runner import Gpu

Numbers = tuple[tuple[str, ...], int | None]
"""UUIDs in Ollama's order, and how many of them it sees (None = all)."""

_PREFIXES = ("GPU-", "MIG-")


class CardNumbers:
    """The numbering of one Ollama's cards. `gpus` is the configured list; "auto" and "none" name all."""

    def __init__(self, gpus: Gpus) -> None:
        self._entries = None if isinstance(gpus, str) else gpus
        self._known: dict[str, Gpu] = {}  # UUID of `_order` → the card when it was last seen
        self._order: list[str] = []  # UUIDs in Ollama's order, with those that it does not see at the end
        self._count: int | None = None  # how many of them Ollama sees; None = all
        self._last: tuple[tuple[Gpu, ...], tuple[Gpu, ...] | None] | None = None  # a reading, and it by these numbers

    @property
    def is_configured(self) -> bool:
        """True if the configuration lists the cards, and so gives their order."""
        return self._entries is not None

    @property
    def hidden(self) -> tuple[Gpu, ...]:
        """The cards that Ollama does not see."""
        return tuple(self.known()[self._count :]) if self._count is not None else ()

    def unmatched(self, gpus: Sequence[Gpu]) -> str:
        """Return which configured entries do not name exactly one of these cards, with the cards; "" if all do."""
        wrong = [str(entry) for entry in self._entries or () if len(_named(entry, gpus)) != 1]
        listed = ", ".join(f'{gpu.index} = "{gpu.uuid}" ({gpu.name})' for gpu in gpus) or "none"
        return f"found {', '.join(wrong)}, which is not exactly one card; the cards are {listed}" if wrong else ""

    def take(self, gpus: Sequence[Gpu]) -> bool:
        """Take over a reading; return True if its cards void the known order: new ones have appeared."""
        is_news = self._entries is None and bool(self._order) and any(gpu.uuid not in self._order for gpu in gpus)
        if is_news:
            self.forget()
        if not self._order and not self.unmatched(gpus):
            self._order, self._last = self._listed(gpus), None
        self._known.update({gpu.uuid: gpu for gpu in gpus if gpu.uuid in self._order})
        return is_news

    def _listed(self, gpus: Sequence[Gpu]) -> list[str]:
        if self._entries is None:
            return [gpu.uuid for gpu in gpus]
        return list(dict.fromkeys(_named(entry, gpus)[0].uuid for entry in self._entries))

    def numbered(self, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...] | None:
        """Return the cards as Ollama numbers them, None if they are unknown, () only if there are none.

        A card that has gone keeps its number, with no memory: Ollama does not count its cards again while it runs.
        """
        if self._last is None or self._last[0] is not gpus:
            self._last = gpus, self._number(gpus)
        return self._last[1]

    def _number(self, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...] | None:
        if not self._order:
            return None if self._entries is not None else ()  # the list names a card that has not been seen yet
        present = {gpu.uuid: gpu for gpu in gpus}
        order = self._order[: self._count]
        if not any(uuid in present for uuid in order):
            return None
        cards = (present.get(uuid) or _without_memory(self._known[uuid]) for uuid in order)
        return tuple(gpu if gpu.index == index else replace(gpu, index=index) for index, gpu in enumerate(cards))

    def gone(self, gpus: Sequence[Gpu]) -> list[Gpu]:
        """Return the cards that are not among `gpus` any more, as they were last seen."""
        present = {gpu.uuid for gpu in gpus}
        return [card for card in self.known() if card.uuid not in present]

    def is_hidden(self, number: int) -> bool:
        """Return True if Ollama is taken not to see the card with this number."""
        return self._count is not None and number >= self._count

    def exchange(self, meant: int, found: int) -> None:
        """Exchange two numbers: what was meant for card `meant` has gone to card `found`."""
        order = self._order
        order[meant], order[found] = order[found], order[meant]
        self._last = None

    def limit(self, count: int, proven: Container[str], used: Container[str]) -> Numbers:
        """Note that Ollama sees only `count` cards; return the numbers until now.

        Cards whose number is `proven` keep it. Which of the others it sees is open: first those that have been `used`,
        then the largest, because what would fit on one of Ollama's cards must not be refused. Loads correct that.
        """
        before: Numbers = tuple(self._order), self._count
        others = [uuid for uuid in self._order if uuid not in proven]
        others.sort(key=lambda uuid: (uuid not in used, -self._known[uuid].total_bytes))
        rest = iter(others)
        self.restore((tuple(uuid if uuid in proven else next(rest) for uuid in self._order), count))
        return before

    def restore(self, numbers: Numbers) -> None:
        """Take back a limit that was wrong."""
        self._order, self._count, self._last = list(numbers[0]), numbers[1], None

    def known(self) -> list[Gpu]:
        """Return the cards in Ollama's order, each as it was last seen."""
        return [self._known[uuid] for uuid in self._order]

    def by_uuid(self) -> Mapping[str, int]:
        """Return the number of each card by UUID."""
        return {uuid: number for number, uuid in enumerate(self._order)}

    def forget(self) -> None:
        """Forget what loads have taught, and take the next reading as it comes: Ollama counts its cards again."""
        self._order, self._count, self._last = [], None, None
        self._known.clear()


def _without_memory(card: Gpu) -> Gpu:
    return replace(card, total_bytes=0, free_bytes=0)


def _named(entry: int | str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """Return the cards that an entry of `gpus` names: by index, by UUID, or by the start of one as CUDA does."""
    text = str(entry).strip()
    if text.isascii() and text.isdigit():
        return [gpu for gpu in gpus if gpu.index == int(text)]
    exact = [gpu for gpu in gpus if gpu.uuid.lower() == text.lower()]
    if exact or not text.upper().startswith(_PREFIXES) or text.upper() in _PREFIXES:
        return exact
    return [gpu for gpu in gpus if gpu.uuid.lower().startswith(text.lower())]
