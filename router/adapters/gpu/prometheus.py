"""Free memory from a Prometheus text page with the names of DCGM exporter (`DCGM_FI_DEV_FB_FREE` and so on, in MiB).

The exporter reads the cards at its own interval (`-c` of dcgm-exporter, 30 s by default): its figures can be that old.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping

from router.adapters.gpu.nvml import UNKNOWN_CONTEXT_BYTES
from router.adapters.gpu.reading import (
    MAX_CARDS,
    PARTS_AT_ONCE,
    CachedReading,
    Cards,
    ProbeReading,
    amount_bytes,
    card_number,
    usable,
)
from router.adapters.heads import BoundedTransport
from router.adapters.lean_httpx import httpx
from router.core.masking import masked
from router.core.ollama.runner import Gpu
from router.core.units import MIB
from router.errors import ProbeError

_PREFIX = "DCGM_FI_DEV_FB_"
_FIGURES = ("FREE", "USED", "TOTAL", "RESERVED")
_MOST_LINES = 8 * MAX_CARDS  # of memory: each takes a while on the loop
_LINE = re.compile(r"^[ \t]*DCGM_FI_DEV_FB_[^\n]*", re.MULTILINE)
# Anchored, and no two parts can match the same character: linear in the length of the line.
_LABEL = re.compile(r'[\s,]*(\w+)="((?:[^"\\]|\\.)*)"')
_Card = tuple[str, str, int, str]  # labels that identify a card: Hostname, UUID, gpu, GPU_I_ID (its MIG instance)


class PrometheusProbe:
    """Reads `url` at most once per `cache_s`.

    Raises ProbeError if it cannot be read within `timeout_s`, is longer than `max_bytes`, or lists no card.
    """

    name = "prometheus"
    is_live = True

    def __init__(self, url: str, *, cache_s: float = 1.0, timeout_s: float = 2.0, max_bytes: int = 1 << 20) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._shown = masked(url)  # errors go to the log
        self._max_bytes = max_bytes
        # Not compressed: a small answer could become gigabytes.
        self._http = httpx.AsyncClient(
            timeout=timeout_s,
            trust_env=False,
            headers={"Accept-Encoding": "identity"},
            transport=BoundedTransport(verify=True),
        )
        self._cached = CachedReading(self._read_cards, cache_s)

    async def read(self, *, is_fresh: bool = False) -> ProbeReading:
        return await self._cached.get(is_fresh=is_fresh)

    async def aclose(self) -> None:
        await self._cached.aclose()
        await self._http.aclose()

    async def _read_cards(self) -> Cards:
        try:
            async with asyncio.timeout(self._timeout_s):  # httpx's timeout bounds each part of an answer, not the whole
                text = await self._page()
        except TimeoutError:
            raise ProbeError(f"{self._shown} did not answer in {self._timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise ProbeError(f"{self._shown} cannot be read: {masked(str(exc)) or type(exc).__name__}") from exc
        return parse_metrics(text), ()

    async def _page(self) -> str:
        async with self._http.stream("GET", self._url) as response:
            if not response.is_success:
                raise ProbeError(f"{self._shown} answered with status {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ProbeError(f"{self._shown} answered in an encoding that was not asked for")
            page, parts = bytearray(), 0
            async for part in response.aiter_raw():
                page += part
                parts += 1
                if parts % PARTS_AT_ONCE == 0:
                    await asyncio.sleep(0)
                if len(page) > self._max_bytes:
                    raise ProbeError(f"{self._shown} is longer than {self._max_bytes} bytes")
            return page.decode("utf-8", "replace")


def parse_metrics(text: str) -> tuple[Gpu, ...]:
    """Return the cards of one page by host and number; each MIG instance is a card of its own."""
    amounts: dict[_Card, dict[str, int]] = {}
    names: dict[_Card, str] = {}
    for figure, labels, amount in _samples(text):
        number = card_number(labels.get("gpu", "")) or 0
        card = (labels.get("Hostname", ""), labels.get("UUID", ""), number, labels.get("GPU_I_ID", ""))
        amounts.setdefault(card, {})[figure] = amount
        names[card] = labels.get("modelName") or names.get(card, "GPU")
    known = {card: found for card, found in amounts.items() if "FREE" in found}
    if not known:
        raise ProbeError("the page shows no DCGM_FI_DEV_FB_FREE")
    ordered = sorted(known, key=lambda card: (card[0], card[2], card[3]))
    return usable([_gpu(index, card, known[card], names[card]) for index, card in enumerate(ordered)])


def _samples(text: str) -> Iterator[tuple[str, Mapping[str, str], int]]:
    """Yield figure, labels and bytes of each sample; lines of other metrics and without a number are skipped."""
    for number, found in enumerate(_LINE.finditer(text)):
        if number >= _MOST_LINES:
            raise ProbeError(f"the page shows more than {_MOST_LINES} figures of memory")
        line = found[0]
        start, brace, _ = line.partition("{")
        figure = start.strip().removeprefix(_PREFIX)
        close = line.rfind("}")
        if not brace or figure not in _FIGURES or close < 0:
            continue
        value = line[close + 1 :].split(maxsplit=1)
        amount = amount_bytes(value[0], MIB) if value else None
        if amount is not None:
            yield figure, _labels(line[len(start) + 1 : close]), amount


def _labels(text: str) -> dict[str, str]:
    found, at = {}, 0
    while (label := _LABEL.match(text, at)) is not None:
        found[label[1]] = label[2]
        at = label.end()
    return found


def _gpu(index: int, card: _Card, found: Mapping[str, int], name: str) -> Gpu:
    host, uuid, number, instance = card
    uuid = uuid or (f"{host}/gpu-{number}" if host else f"gpu-{number}")
    uuid = f"{uuid}/{instance}" if instance else uuid
    total = found.get("TOTAL") or sum(found.get(figure, 0) for figure in ("FREE", "USED", "RESERVED"))
    return Gpu(index, uuid, name, total, found["FREE"], UNKNOWN_CONTEXT_BYTES)
