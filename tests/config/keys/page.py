"""A page of metrics that shows the cards of a simulated machine."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from router.core.units import MIB
from tests.http.raw_upstream import answer, raw_upstream


class MetricsPage:
    """The cards of a simulated machine as DCGM exporter shows them; until there are any, one empty card of 24 GB."""

    def __init__(self):
        self.url = ""
        self.cards = None
        self.hits = 0
        self.delay_s = 0.0
        self.is_broken = False

    async def show(self, visit):
        """Answer one request."""
        self.hits += 1
        await asyncio.sleep(self.delay_s)
        rows = self.cards.gpus() if self.cards is not None else ()
        free = [(gpu.index, gpu.free_bytes // MIB, gpu.total_bytes // MIB) for gpu in rows] or [(0, 24564, 24564)]
        lines = [
            f'DCGM_FI_DEV_FB_{figure}{{gpu="{index}",UUID="GPU-{index}",modelName="page"}} {value}'
            for index, left, total in free
            for figure, value in (("FREE", left), ("TOTAL", total))
        ]
        status = b"500 Internal Server Error" if self.is_broken else b"200 OK"
        await answer("\n".join(lines).encode(), status=status, type_=b"text/plain")(visit)


@asynccontextmanager
async def metrics_page():
    """A page of metrics on a free port."""
    page = MetricsPage()
    async with raw_upstream(page.show) as server:
        page.url = f"{server.url}/metrics"
        yield page
