"""What was read of models, within a number of bytes: a model's metadata is its author's, and anybody may pull models.

Models that are listed come first. Of those that are not listed any more the last ones are kept, because Ollama leaves
models out of its list for a moment, and a show is expensive.
"""

from __future__ import annotations

from collections.abc import Collection

from router.adapters.held import held_bytes
from router.adapters.leaving import Leaving
from router.core.decision.caches import forget_models
from router.core.ollama.model import ModelFacts

MOST_BYTES, MOST_MODEL_BYTES = 256 << 20, 1 << 20
"""Of all models that are listed, and of one of them; what is shown beyond it is sized by its download."""

UNLISTED_SHARE = 16
MOST_UNLISTED = 1024
"""Of the models that are not listed any more: one part in so many of the bytes for all that are, and their number."""


class ShownModels:
    """Facts by manifest digest. What is kept of models that are not listed is forgotten, the oldest first.

    What is forgotten goes to `leaving`.
    """

    def __init__(
        self,
        most_bytes: int = MOST_BYTES,
        most_model_bytes: int = MOST_MODEL_BYTES,
        most_unlisted_bytes: int | None = None,
    ) -> None:
        self.leaving = Leaving()
        self._most_bytes = most_bytes
        self._most_model_bytes = most_model_bytes
        self._most_unlisted_bytes = most_bytes // UNLISTED_SHARE if most_unlisted_bytes is None else most_unlisted_bytes
        self._listed: dict[str, tuple[ModelFacts, int]] = {}
        self._unlisted: dict[str, tuple[ModelFacts, int]] = {}
        self._listed_bytes = self._unlisted_bytes = self._forgotten_bytes = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._listed or digest in self._unlisted

    def get(self, digest: str) -> ModelFacts | None:
        """Return the facts that the model was shown with, None if they are not kept."""
        kept = self._listed.get(digest) or self._unlisted.get(digest)
        return kept and kept[0]

    def keep(self, digest: str, facts: ModelFacts) -> ModelFacts:
        """Keep the facts of a listed model and return them: without metadata if there is no room for it."""
        self._drop(digest)
        return self._keep(digest, facts, held_bytes(facts))

    def list_only(self, digests: Collection[str]) -> None:
        """Set which models are listed."""
        for digest in self._listed.keys() - digests:
            self._unlisted[digest] = kept = self._listed.pop(digest)
            size_bytes = kept[1]
            self._listed_bytes -= size_bytes
            self._unlisted_bytes += size_bytes
        for digest in [digest for digest in self._unlisted if digest in digests]:
            facts, size_bytes = self._unlisted.pop(digest)
            self._unlisted_bytes -= size_bytes
            self._keep(digest, facts, size_bytes)
        self._forget_some()

    def _keep(self, digest: str, facts: ModelFacts, size_bytes: int) -> ModelFacts:
        doubt = ""
        if size_bytes > self._most_model_bytes:
            doubt = "its metadata takes too much memory"
        elif self._listed_bytes + size_bytes > self._most_bytes and not facts.doubt:
            doubt = "the metadata of all models takes too much memory"
        if doubt:
            facts = facts.bare(doubt)
            size_bytes = held_bytes(facts)
        self._listed[digest] = facts, size_bytes
        self._listed_bytes += size_bytes
        return facts

    def _forget_some(self) -> None:
        """Forget the oldest of those that are not listed, and from time to time all that was worked out for such ones.

        That holds their facts.
        """
        while self._unlisted_bytes > self._most_unlisted_bytes or len(self._unlisted) > MOST_UNLISTED:
            facts, size_bytes = self._unlisted.pop(next(iter(self._unlisted)))
            self.leaving.add((facts,))
            self._unlisted_bytes -= size_bytes
            self._forgotten_bytes += size_bytes
        if self._forgotten_bytes > self._most_unlisted_bytes:
            self._forgotten_bytes = 0
            forget_models()

    def _drop(self, digest: str) -> None:
        if digest in self._listed:
            self._listed_bytes -= self._listed.pop(digest)[1]
        if digest in self._unlisted:
            self._unlisted_bytes -= self._unlisted.pop(digest)[1]
