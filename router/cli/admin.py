"""Requests to the admin listener of a running router, for the commands that show its state."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from router.errors import BadRequest, ModelNotFound, RouterError, UpstreamError

TIMEOUT_S = 10.0
KEY_VARIABLE = "OLLAMA_ROUTER_ADMIN_KEY"
"""The variable with the admin key: on a command line others on the machine could read it."""

DEFAULT = "http://127.0.0.1:11436"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # ignores http_proxy: the router is local


def ask(admin: str, path: str, *, method: str = "GET", **query: object) -> dict[str, Any]:
    """Return the JSON of one page. Raises UpstreamError if no router answers, BadRequest, ModelNotFound, or the
    router's error."""
    try:
        found: dict[str, Any] = json.loads(_fetch(admin, path, method, query))
    except ValueError:
        raise _stranger(admin, "its answer is not JSON") from None
    return found


def _fetch(admin: str, path: str, method: str, query: dict[str, object]) -> bytes:
    named = {key: value for key, value in query.items() if value is not None}
    base = admin if "://" in admin else f"http://{admin}"  # HOST:PORT, as for `serve --admin`
    url = f"{base.rstrip('/')}{path}" + (f"?{urllib.parse.urlencode(named)}" if named else "")
    try:
        with _DIRECT.open(urllib.request.Request(url, method=method, headers=_headers()), timeout=TIMEOUT_S) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as exc:
        raise _refused(admin, exc.code, exc.read()) from None
    except (urllib.error.URLError, OSError, ValueError) as exc:
        raise _unreachable(admin, exc) from None


def _unreachable(admin: str, exc: Exception) -> UpstreamError:
    reason = getattr(exc, "reason", exc)
    why = getattr(reason, "strerror", None) or reason  # without the number of the error
    cure = "start one with: ollama-router serve, or name its admin address by --admin"
    return UpstreamError(f"cannot reach a router at {admin} ({why}); {cure}")


def _stranger(admin: str, answer: str) -> UpstreamError:
    """Return the error for a server that is none of a router's admin address: often it is the one for clients."""
    return UpstreamError(f"{admin} is not a router's admin address (`admin` in its configuration): {answer.strip()}")


def ask_text(admin: str, path: str, **query: object) -> str:
    """Return the text of one page. Raises as `ask`."""
    return _fetch(admin, path, "GET", query).decode()


def _headers() -> dict[str, str]:
    """Return the headers of a request: the admin key, if there is one, and a sign that no web page sends it."""
    key = os.environ.get(KEY_VARIABLE, "")
    return {"X-Router-Admin": "ollama-router", **({"Authorization": f"Bearer {key}"} if key else {})}


def is_stale(found: dict[str, Any]) -> bool:
    """Print to standard error that a page shows an old state, because Ollama does not answer; return whether it does.

    Commands exit with 1 then, so that a script does not take the old state for the present one.
    """
    ollama = found.get("ollama") or {"up": True}
    if ollama["up"]:
        return False
    since = ollama.get("stale_since")
    age = f"; this is its state of {since}" if since and ollama.get("version") else ""
    print(f"Ollama does not answer: {ollama['error']}{age}", file=sys.stderr)
    return True


def _refused(admin: str, status: int, body: bytes) -> RouterError:
    """Return the error of a response; a page that is missing without a word in JSON is not a router's."""
    text = body.decode("utf-8", "replace")[:500]
    try:
        message = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return _stranger(admin, text) if status == 404 else RouterError(text)
    return {400: BadRequest, 404: ModelNotFound}.get(status, RouterError)(message)
