"""A chain with the rule that it was found by, and the rulebook in force."""

from __future__ import annotations

from dataclasses import dataclass

from router.config import ChainRule, Rulebook
from router.core.decision.chain import Chain
from router.core.teams.identity import Identities


@dataclass(frozen=True, slots=True, eq=False)
class RuledChain(Chain):
    """A chain that requests use: `rule` is what the configuration says about it.

    Two teams whose chains have one name have two of them, and so has a chain before and after a reload.
    """

    rule: ChainRule


class RulesInForce:
    """`book` is the rulebook for the requests that begin now; those under way keep theirs. `identities` say who asks by
    key and network, None without teams."""

    book: Rulebook
    identities: Identities | None

    def __init__(self, book: Rulebook) -> None:
        self.replace(book)

    def replace(self, book: Rulebook) -> None:
        """Put `book` in force."""
        self.book, self.identities = book, book.identities
