"""One team's file: its keys and networks, its rights and models, its chains, its share and limits.

A field's description is its documentation everywhere: `config/team.schema.json` and docs/teams.md repeat it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from router.config.chain_sections import ChainValue
from router.config.keys import KeySection
from router.config.section import Section
from router.config.team_values import Amount, MemoryPart, TeamName, Weight
from router.config.values import AtLeastOne, KeepAlive, ModelPattern, ProxyNetwork, allowed
from router.core.decision.chain_choices import NothingFits
from router.core.teams.team import OnLoss, Permission

_TEAM_RIGHTS = ("infer", "read", "manage")


def _right(value: object) -> object:
    if value in _TEAM_RIGHTS:
        return value
    raise allowed('"infer", "read" or "manage"; "admin" is never a right of a team')


TeamRight = Annotated[
    Literal["infer", "read", "manage"], BeforeValidator(_right), WithJsonSchema({"enum": list(_TEAM_RIGHTS)})
]


class ModelsSection(Section):
    allow: tuple[ModelPattern, ...] = ()
    """models that the team may ask for, perhaps with * or ?; [] = all"""
    deny: tuple[ModelPattern, ...] = ()
    """models that it may not ask for, even if allowed, and that serve none of its requests"""


class TeamLimitsSection(Section):
    concurrent: Amount | None = None
    """requests under way at one time, waiting ones included; null = no limit"""
    requests_per_minute: Amount | None = None
    """requests in any 60 seconds; null = no limit"""
    tokens_per_day: Amount | None = None
    """tokens read and written in a day, which begins at midnight UTC; null = no limit"""
    waiting: Amount | None = None
    """requests in the queue; null = no limit"""
    evictions_per_minute: Amount | None = None
    """models of others that its requests may evict in any 60 seconds; null = no limit"""
    on_loss: OnLoss = "part"
    """if the store of shared limits cannot be used: part (each router admits its part of them), closed (429)"""


class TeamMemorySection(Section):
    floor: MemoryPart | None = None
    """what the team has loaded is not evicted by others below this; null = it may be"""
    cap: MemoryPart | None = None
    """no load of the team beyond this while others wait; null = no limit"""

    @model_validator(mode="after")
    def _agree(self) -> TeamMemorySection:
        floor, cap = self.floor, self.cap
        if floor is None or cap is None or (floor.size_bytes is None) != (cap.size_bytes is None):
            return self
        if (floor.size_bytes or 0, floor.share) > (cap.size_bytes or 0, cap.share):
            raise allowed("a floor of at most the cap")
        return self


class CapsSection(Section):
    num_ctx: AtLeastOne | None = None
    """largest context that a request names (a larger one is reduced) or that it is given, in tokens; null = no limit"""
    keep_alive: KeepAlive | None = None
    """longest keep_alive of a request; a longer one is reduced; null = no limit"""
    num_gpu: Permission | None = None
    """num_gpu of a request: allow, ignore (as if it named none), refuse (403); null = as clients.num_gpu"""
    nothing_fits: tuple[NothingFits, ...] | None = None
    """rules that a request may choose by X-Router-Nothing-Fits; null = as clients.nothing_fits"""


class TeamSection(Section):
    model_config = ConfigDict(title="Team", serialize_by_alias=True)

    team: TeamName
    """its name: letters, digits, - and _"""
    keys: tuple[KeySection, ...] = ()
    """its keys, of which only hashes are known; several are valid at a time, so that one can replace another"""
    networks: tuple[ProxyNetwork, ...] = Field(default=(), alias="from")
    """addresses or networks; a client that connects from there without a key is this team"""
    rights: tuple[TeamRight, ...] = ("infer", "read")
    """infer (use models), read (list and show them), manage (pull, create, copy and delete those of manage_models)"""
    models: ModelsSection = ModelsSection()
    """which models it may ask for"""
    manage_models: tuple[ModelPattern, ...] = ()
    """models that the right manage is for, perhaps with * or ?; [] = none"""
    chains: Mapping[ModelPattern, ChainValue] = {}
    """chains for its requests, looked up before those of router.yaml"""
    share: Weight = 1.0
    """its weight when teams compete for the cards"""
    limits: TeamLimitsSection = TeamLimitsSection()
    """what it may use at most"""
    vram: TeamMemorySection = TeamMemorySection()
    """its part of the cards' memory"""
    caps: CapsSection = CapsSection()
    """largest values of what its requests may ask for"""
    nothing_fits: NothingFits | None = None
    """as in defaults, for its requests; null = as the chain or defaults say"""
