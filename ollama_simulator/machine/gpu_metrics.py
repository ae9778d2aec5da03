"""The virtual cards in the format of NVIDIA's DCGM exporter, for a Prometheus probe in another process."""

from __future__ import annotations

import asyncio

from ollama_simulator.machine.cards import Cards
from router.core.units import MIB

FIELDS = (
    ("DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB)."),
    ("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB)."),
)


def page(cards: Cards) -> str:
    """Return the metrics page: free and used MiB per card, labelled with index, UUID and model."""
    lines: list[str] = []
    for name, text in FIELDS:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
        for gpu in cards.listed():
            value = gpu.free_bytes if name.endswith("FREE") else gpu.total_bytes - gpu.free_bytes
            labels = f'gpu="{gpu.index}",UUID="{gpu.uuid}",device="nvidia{gpu.index}",modelName="{gpu.name}"'
            lines.append(f"{name}{{{labels}}} {value // MIB}")
    return "\n".join(lines) + "\n"


async def serve_metrics(cards: Cards, host: str, port: int) -> asyncio.Server:
    """Serve the page on every path. The caller closes the server."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            body = page(cards).encode()
            head = (
                f"Content-Type: text/plain; version=0.0.4\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(b"HTTP/1.1 200 OK\r\n" + head.encode() + body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(answer, host, port)
