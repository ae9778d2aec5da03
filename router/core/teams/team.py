"""A team as the configuration describes it, and the identity of one request. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

Right = Literal["infer", "read", "manage", "admin"]
"""What a client may do: use models; list and show them; pull, create, copy and delete them; all of it, and the admin
pages."""

TeamRule = Literal["refuse", "wait", "allow_partial", "passthrough"]
"""What happens if no variant fits, as `defaults.nothing_fits`."""

OnLoss = Literal["part", "closed"]
"""Each router admits its part of the limits, or none admits a request."""

Permission = Literal["allow", "ignore", "refuse"]
"""Whether a request may ask for something: yes, as if it had not asked, or it is a 403."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a team: only the SHA-256 of it is known (32 bytes). `expires_s` is Unix time, None = never.

    With `is_ssh` it is the SHA-256 of the blob of an SSH public key, with whose private key the Ollama CLI signs.
    """

    id: str
    sha256: bytes = field(repr=False)
    expires_s: float | None = None
    is_ssh: bool = False


@dataclass(frozen=True, slots=True)
class TeamLimits:
    """What a team may use at most; None = no limit.

    `concurrent` requests under way (waiting ones too), `requests_per_minute` in any 60 s, `tokens_per_day` (read and
    written, by UTC day), `waiting` requests in the queue, `evictions_per_minute` of models that others use.
    `on_loss`: what of them holds while the store that several routers share cannot be used.
    """

    concurrent: int | None = None
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    waiting: int | None = None
    evictions_per_minute: int | None = None
    on_loss: OnLoss = "part"

    is_metered: bool = field(init=False, default=False)
    """True if each request has to be counted; the last two limits are those of the queue."""

    def __post_init__(self) -> None:
        """Set what is read for each request once."""
        counted = self.concurrent, self.requests_per_minute, self.tokens_per_day
        object.__setattr__(self, "is_metered", any(limit is not None for limit in counted))


@dataclass(frozen=True, slots=True)
class Memory:
    """An amount of a backend's VRAM: `size_bytes`, or if that is None the `share` of all of it (0 … 1)."""

    size_bytes: int | None = None
    share: float = 0.0

    def of_bytes(self, total_bytes: int) -> int:
        """Return the amount in bytes on cards with `total_bytes` in all."""
        return self.size_bytes if self.size_bytes is not None else int(self.share * total_bytes)


@dataclass(frozen=True, slots=True)
class TeamMemory:
    """`floor`: what the team has loaded is not evicted by others below this. `cap`: no load of the team beyond it
    while others wait. None = no such rule."""

    floor: Memory | None = None
    cap: Memory | None = None


@dataclass(frozen=True, slots=True)
class Caps:
    """Largest values of what requests of the team may ask for; a larger one is reduced. None = no limit.

    `num_gpu` and `nothing_fits` are what they may ask for at all, as in `clients`; None = as there.
    """

    num_ctx: int | None = None
    keep_alive_s: float | None = None
    num_gpu: Permission | None = None
    nothing_fits: tuple[TeamRule, ...] | None = None

    def reduced_num_ctx(self, num_ctx: int | None) -> int | None:
        """Return the context that a request names, reduced to the largest one; None if it names none."""
        return num_ctx if num_ctx is None or self.num_ctx is None else min(num_ctx, self.num_ctx)


NO_LIMITS, NO_MEMORY_RULES, NO_CAPS = TeamLimits(), TeamMemory(), Caps()
ALL_RIGHTS: frozenset[Right] = frozenset(("infer", "read", "manage", "admin"))
DEFAULT_RIGHTS: frozenset[Right] = frozenset(("infer", "read"))


@dataclass(frozen=True, slots=True, eq=False)
class Team:
    """One team. `eq` is identity: a reload makes new teams, and what was cached for the old ones is not used again.

    `networks` are those from which a client without a key counts as this team. `allow` and `deny` are patterns of model
    names (``*`` and ``?``); an empty `allow` allows every model. `own` are the keys of names (`names.key_of`) that its
    own chains define: it may use them, whatever `allow` says. `manage_models` are the patterns within which the
    right `manage` holds; empty = none. `share` is its weight when teams compete for the cards. `nothing_fits` None =
    as its chains say.
    """

    name: str
    keys: tuple[Key, ...] = ()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    rights: frozenset[Right] = DEFAULT_RIGHTS
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()
    manage_models: tuple[str, ...] = ()
    share: float = 1.0
    limits: TeamLimits = NO_LIMITS
    memory: TeamMemory = NO_MEMORY_RULES
    caps: Caps = NO_CAPS
    nothing_fits: TeamRule | None = None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Identity:
    """Whose request it is: the team, and which of its keys was shown ("" = none)."""

    team: Team
    key_id: str = ""


ANYONE = Identity(Team("anonymous"))
"""A request on a router without teams."""
