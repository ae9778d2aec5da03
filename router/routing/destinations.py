"""Builds destinations, by the operator's settings for answers and derived tags."""

from __future__ import annotations

from functools import lru_cache

from router.config import Defaults
from router.core.decision.verdict import Verdict
from router.core.ollama.derived_names import parameters_of
from router.core.ollama.runner import LoadOptions
from router.core.payload.read import Patch
from router.http.headers import header_lines
from router.routing.call import Call
from router.routing.destination import Destination, Rename, client_spelling, router_headers
from router.routing.ruled import RuledChain
from router.telemetry import Decided

IN_OPTIONS = tuple(key for key in LoadOptions.__struct_fields__ if key != "shift")
"""The options of a runner. `shift` is not among them: it is a top-level key that has a meaning for clients."""

NO_PATCH = Patch.of({})
KEEP_ALIVE = frozenset({"keep_alive"})
_NOTHING: frozenset[str] = frozenset()


class Destinations:
    """Builds destinations for one backend."""

    def __init__(self, backend: str, defaults: Defaults) -> None:
        self.backend = backend
        self._is_echo = defaults.response_model == "requested"
        self.has_automatic = not defaults.derived_tags

    def to_resident(
        self,
        call: Call,
        chain: RuledChain,
        chosen: Verdict,
        weights: str,
        reason: str,
        options: LoadOptions,
        tag: str,
        decided: Decided,
        *,
        is_short: bool = False,
    ) -> Destination:
        """Return the destination for a resident that runs with `options`; `tag` is the derived tag for it, or "".

        `is_short` as in the destination.
        """
        served = client_spelling(call.request.model, chosen.variant.model)
        name = tag or served
        headers = router_headers(call.request.model, chosen.variant.model, reason, 0.0, self.backend)
        is_native = call.route.dialect == "ollama"
        return Destination(
            weights=weights,
            variant=chosen.variant.model,
            served=chosen.variant.model,
            reason=reason,
            name=name,
            patch=patch_of(options) if is_native else NO_PATCH,
            drop=KEEP_ALIVE if is_native else _NOTHING,  # the router honours keep_alive itself
            rename=self._rename(call, served, name),
            headers=headers,
            lines=header_lines(headers),
            decided=decided,
            may_vanish=bool(tag) or served != call.request.model,
            errors=_pair(name, call.request.model),
            chain=chain,
            is_short=is_short,
        )

    def passed_on(
        self,
        call: Call,
        reason: str,
        model: str = "",
        *,
        patch: Patch = NO_PATCH,
        tag: str = "",
        decided: Decided | None = None,
        loads: str = "",
        drop: frozenset[str] = _NOTHING,
    ) -> Destination:
        """Return the destination that passes a request on, under the name of `model` or `tag` if given.

        `loads` are the weights that Ollama loads for it, unless they are loaded; `drop` are keys that it must not see.
        """
        served = client_spelling(call.request.model, model) if model else call.request.model
        headers = router_headers(call.request.model, served, reason, 0.0, self.backend)
        return Destination(
            weights="",
            variant=model,
            served=served,
            reason=reason,
            name=tag or served,
            patch=patch,
            drop=drop,
            rename=self._rename(call, served, tag) if tag else None,
            headers=headers,
            lines=header_lines(headers),
            decided=decided,
            may_vanish=bool(tag),
            errors=_pair(tag or served, call.request.model),
            loads=loads,
        )

    def needs_tag(self, call: Call, options: LoadOptions) -> bool:
        """Return True if the runner's options can be sent only by a derived tag."""
        return call.route.dialect != "ollama" and not self.has_automatic and bool(parameters_of(options))

    def is_automatic(self, call: Call) -> bool:
        """Return True if neither the request nor a tag can carry options: it runs with Ollama's default options."""
        return self.has_automatic and call.route.dialect != "ollama"

    def _rename(self, call: Call, served: str, name: str) -> Rename | None:
        """Return (name in Ollama's answer, name to show), None if they are equal."""
        shown = call.request.model if self._is_echo else served
        return _pair(name, shown)


def _pair(name: str, shown: str) -> Rename | None:
    return None if name == shown else (name.encode(), shown.encode())


@lru_cache(maxsize=256)
def patch_of(options: LoadOptions) -> Patch:
    """Return the patch that sets exactly these options in a body and removes the client's."""
    return Patch.of({key: getattr(options, key) for key in IN_OPTIONS})


def digest_of(chosen: Verdict) -> str:
    """Return the variant's manifest digest. It is part of a tag's name, so that a replaced variant gets a new tag."""
    return chosen.facts.digest if chosen.facts is not None else ""
