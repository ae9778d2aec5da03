"""What systemd is told (sd_notify): ready, reloading, stopping, and at intervals that the event loop still runs.

Without `Type=notify` there is no socket, and nothing is sent. A message that cannot be sent is lost: it is no reason to
stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

_MOST_DIGITS = 18


class ServiceManager:
    """Sends to the socket that `env` names; the variables are removed from it, so that no child uses them."""

    def __init__(self, env: MutableMapping[str, str]) -> None:
        path = env.pop("NOTIFY_SOCKET", "")
        interval, pid = env.pop("WATCHDOG_USEC", ""), env.pop("WATCHDOG_PID", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        is_ours = pid in ("", str(os.getpid()))
        is_number = interval.isdecimal() and len(interval) <= _MOST_DIGITS
        self.watchdog_s = int(interval) / 1e6 if is_number and int(interval) and is_ours else None

    def ready(self, status: str) -> None:
        """Tell that the service has started, or that a reload is over; `status` is shown by systemctl."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Tell that the configuration is being read again; `ready` has to follow, whether that succeeds or not."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Tell that the service is about to end."""
        self._send("STOPPING=1\nSTATUS=requests under way may end")

    async def watch(self) -> None:
        """Tell, twice in each interval of the watchdog, that the loop runs. Returns if there is no watchdog."""
        while self.watchdog_s is not None:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        ):
            sock.setblocking(False)
            sock.connect(self._address)
            sock.send(text.encode())
