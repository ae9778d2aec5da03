"""The line that `defaults.announce` puts in front of an answer: which variant has answered, and why."""

from __future__ import annotations

from router.core.ollama.names import key_of
from router.core.payload.announcing import may_announce
from router.routing.call import Call

MOST_CHARACTERS = 400


def announcement(call: Call) -> str:
    """Return the line for the answer to a request that was sent, "" if there is none to put in front of it."""
    rules, request = call.chain_rules, call.request
    if rules is None or not request.has_model or (when := rules.rule_for(request.model).announce) == "off":
        return ""
    if not may_announce(call.route.kind, request, call.body, first_only=when == "first"):
        return ""
    return line_of(request.model, call.served, call.reason)


def line_of(requested: str, served: str, reason: str) -> str:
    """Return the line: what has answered, what was asked for if that is another name, and why."""
    why = {"resident": "it was loaded", "fits": "it fits"}.get(reason, reason.removeprefix("fallback: "))
    what = served if key_of(served) == key_of(requested) else f"{served} instead of {requested}"
    text = f"answered by {what}: {why}"
    plain = "".join(char if char.isprintable() and char not in "[]" else " " for char in text)
    return f"[{plain[:MOST_CHARACTERS]}]"
