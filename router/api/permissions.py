"""What the operator lets requests ask for: rules for models that do not fit, endless keep_alive, a placement."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from router.api.bodies import in_one
from router.config import NothingFits
from router.core.payload.read import InferenceRequest
from router.core.payload.rewrite import rewrite
from router.core.teams.team import NO_CAPS, Caps, Permission
from router.errors import Forbidden

ENDLESS_S = 365 * 86400.0
"""A keep_alive of a year or more is as good as endless."""

ALL_RULES: tuple[NothingFits, ...] = ("refuse", "wait", "allow_partial", "passthrough")

BY_ROUTER, BY_TEAM = "on this router (clients.", "to this team (in its file: caps."
"""Who does not allow something; the key follows."""


class Permissions(NamedTuple):
    """What requests may ask for. `ignore` is as if the request had not asked, `refuse` is a 403."""

    nothing_fits: tuple[NothingFits, ...] = ALL_RULES
    keep_alive_forever: Permission = "allow"
    num_gpu: Permission = "allow"

    def check_rule(self, rule: NothingFits | None, caps: Caps = NO_CAPS) -> None:
        """Raise Forbidden for a rule that requests may not choose; those of a team by its `caps`, if these say so."""
        allowed, by = (self.nothing_fits, BY_ROUTER) if caps.nothing_fits is None else (caps.nothing_fits, BY_TEAM)
        if rule is not None and rule not in allowed:
            raise Forbidden(f"X-Router-Nothing-Fits: {rule} is not allowed {by}nothing_fits)")

    def apply(
        self, request: InferenceRequest, body: bytes, caps: Caps, read: Callable[[bytes], InferenceRequest]
    ) -> tuple[InferenceRequest, bytes]:
        """Return request and body without what is to be ignored, and with what is above `caps` reduced to them.

        `read` reads a body. Raises Forbidden.
        """
        options: dict[str, int | None] = {}
        drop: set[str] = set()
        force: dict[str, float] = {}
        if self.keep_alive_forever != "allow" and (request.keep_alive_s or 0.0) >= ENDLESS_S:
            if self.keep_alive_forever == "refuse":
                raise Forbidden("an endless keep_alive is not allowed on this router (clients.keep_alive_forever)")
            drop.add("keep_alive")
        num_gpu, by = (self.num_gpu, BY_ROUTER) if caps.num_gpu is None else (caps.num_gpu, BY_TEAM)
        if num_gpu != "allow" and request.options.num_gpu is not None:
            if num_gpu == "refuse":
                raise Forbidden(f"num_gpu is not allowed {by}num_gpu)")
            options["num_gpu"] = None
        if (num_ctx := caps.reduced_num_ctx(request.num_ctx)) != request.num_ctx:
            options["num_ctx"] = num_ctx
        if caps.keep_alive_s is not None and not drop and (request.keep_alive_s or 0.0) > caps.keep_alive_s:
            force["keep_alive"] = caps.keep_alive_s
        if not (drop or options or force):
            return request, body
        dropped = frozenset(drop)
        changed = rewrite(
            body, model=request.model, options=options, drop=dropped, force=force, members=request.members
        )
        body = in_one(changed)
        return read(body), body
