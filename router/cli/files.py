"""Open files: each connection is one, and a process may have so many only.

Beyond its limit a system closes new connections without a word. So the limit is raised as far as the process may, and
what is left is shared out: connections of clients beyond their share get a 503, for which they stay open for a moment.
"""

from __future__ import annotations

import importlib

from router.config import Config
from router.http.server.shared import LINGERING, lingering

SPARE = 128
"""Files for all else than clients and `limits.pool`: admin pages, control requests, probes, log, store."""

MOST = 1 << 20


def raise_limit() -> int | None:
    """Raise the limit of open files as far as this process may; return it, None if there is none."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # a platform without such limits
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = MOST if hard == unlimited else min(hard, MOST)
    if soft != unlimited and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # the system allows less than it says
            return int(soft)
        soft = wanted
    return None if soft == unlimited else int(soft)


def within(config: Config, files: int | None) -> tuple[Config, str]:
    """Return the configuration with as many connections as `files` allow, and a warning ("" if that is all of them)."""
    limits = config.limits
    if files is None or files >= limits.connections + lingering(limits.connections) + limits.pool + SPARE:
        return config, ""
    rest = max(2, files - min(SPARE, files // 2))
    pool = min(limits.pool, rest // 2)
    clients = min(limits.connections, _with_refused(rest - pool))
    cut = limits.model_copy(update={"connections": clients, "pool": pool})
    warning = (
        f"this process may open {files} files only (ulimit -n, LimitNOFILE, ulimits): it serves {clients} of the "
        f"{limits.connections} client connections of limits.connections, and {pool} of the {limits.pool} of limits.pool"
    )
    return config.model_copy(update={"limits": cut}), warning


def _with_refused(files: int) -> int:
    """Return how many connections fit into so many files beside the refused ones that may be open, at least one."""
    fitting = files * LINGERING // (LINGERING + 1)
    return max(1, min(fitting, files - lingering(0)))
