"""Free memory from a Prometheus text page with the names of DCGM exporter (`DCGM_FI_DEV_FB_FREE` and so on, in MiB).

The exporter reads the cards at its own interval (`-c` of dcgm-exporter, 30 s by default): its figures can be that old.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import httpx

from router.adapters.gpu.nvml import UNKNOWN_CONTEXT_BYTES
from router.adapters.gpu.reading import CachedReading, Cards, ProbeReading
from router.core.ollama.runner import Gpu
from router.core.units import MIB
from router.errors import ProbeError

_SAMPLE = re.compile(r"DCGM_FI_DEV_FB_(FREE|USED|TOTAL|RESERVED)\{([^\n]*)\}\s+([^\s]+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_Card = tuple[str, str, int, str]  # labels that identify a card: Hostname, UUID, gpu, GPU_I_ID (its MIG instance)


class PrometheusProbe:
    """Reads `url` at most once per `cache_s`. Raises ProbeError if it cannot be read or lists no card."""

    name = "prometheus"
    is_live = True

    def __init__(self, url: str, *, cache_s: float = 1.0, timeout_s: float = 2.0) -> None:
        self._url = url
        self._http = httpx.AsyncClient(timeout=timeout_s, trust_env=False)
        self._cached = CachedReading(self._read_cards, cache_s)

    async def read(self, *, is_fresh: bool = False) -> ProbeReading:
        return await self._cached.get(is_fresh=is_fresh)

    async def aclose(self) -> None:
        await self._cached.aclose()
        await self._http.aclose()

    async def _read_cards(self) -> Cards:
        try:
            response = await self._http.get(self._url)
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise ProbeError(f"{self._url} cannot be read: {str(exc) or type(exc).__name__}") from exc
        if not response.is_success:
            raise ProbeError(f"{self._url} answered with status {response.status_code}")
        return parse_metrics(response.text), ()


def parse_metrics(text: str) -> tuple[Gpu, ...]:
    """Return the cards of one page by host and number; each MIG instance is a card of its own."""
    amounts: dict[_Card, dict[str, int]] = {}
    names: dict[_Card, str] = {}
    for figure, labels, amount in _samples(text):
        number = int(labels["gpu"]) if labels.get("gpu", "").isdecimal() else 0
        card = (labels.get("Hostname", ""), labels.get("UUID", ""), number, labels.get("GPU_I_ID", ""))
        amounts.setdefault(card, {})[figure] = amount
        names[card] = labels.get("modelName") or names.get(card, "GPU")
    known = {card: found for card, found in amounts.items() if "FREE" in found}
    if not known:
        raise ProbeError("the page shows no DCGM_FI_DEV_FB_FREE")
    ordered = sorted(known, key=lambda card: (card[0], card[2], card[3]))
    return tuple(_gpu(index, card, known[card], names[card]) for index, card in enumerate(ordered))


def _samples(text: str) -> Iterator[tuple[str, Mapping[str, str], int]]:
    for match in _SAMPLE.finditer(text):
        try:
            value = float(match[3])
        except ValueError:
            continue
        if math.isfinite(value):
            yield match[1], dict(_LABEL.findall(match[2])), int(value * MIB)


def _gpu(index: int, card: _Card, found: Mapping[str, int], name: str) -> Gpu:
    uuid = f"{card[1]}/{card[3]}" if card[3] else card[1] or f"gpu-{index}"
    total = found.get("TOTAL") or sum(found.get(figure, 0) for figure in ("FREE", "USED", "RESERVED"))
    return Gpu(index, uuid, name, total, found["FREE"], UNKNOWN_CONTEXT_BYTES)
