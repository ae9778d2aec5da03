"""A card, and the options that a runner is started with."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card.

    `free_bytes` is the free memory that the driver reports (never total − used). `context_bytes` is what the driver
    context of one more process takes: measured, else ``40 + 3·SM`` MiB, else 457 MiB. `is_optional`: Ollama
    uses it only if it is told to (most APUs).
    """

    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    context_bytes: int = 457 << 20
    compute: str = ""
    is_optional: bool = False

    def with_free(self, free_bytes: int) -> Gpu:
        """Return the card with other free memory, at most all of it (written out: `replace` takes twice as long)."""
        left = min(self.total_bytes, free_bytes)
        if left == self.free_bytes:
            return self
        return Gpu(
            self.index,
            self.uuid,
            self.name,
            self.total_bytes,
            left,
            self.context_bytes,
            self.compute,
            self.is_optional,
        )


class LoadOptions(msgspec.Struct, frozen=True, cache_hash=True):
    """The options whose difference reloads a runner. None = automatic / not sent.

    See docs/ollama.md, "Arrival and reload". A struct, because it is part of many keys: a dataclass takes five times as
    long to hash and compare.
    """

    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    use_mmap: bool | None = None
    draft_num_predict: int | None = None
    shift: bool | None = None

    def at(self, num_ctx: int | None, main_gpu: int | None = None) -> LoadOptions:
        """Return the same options with another context and card (written out: `replace` takes ten times as long)."""
        return LoadOptions(
            num_ctx,
            self.num_batch,
            self.num_gpu,
            main_gpu,
            self.num_thread,
            self.use_mmap,
            self.draft_num_predict,
            self.shift,
        )
