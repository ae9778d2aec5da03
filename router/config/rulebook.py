"""The rules of one configuration for requests: teams, chains, defaults, what clients may ask for. Immutable.

A reload that changes nothing else makes a new rulebook and puts it in the place of the one before. A request keeps the
one that it began with.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from router.config.chains import ChainRules
from router.config.root import Config
from router.config.sections import Clients, Defaults
from router.config.team_files import TeamFile
from router.config.team_section import TeamSection
from router.config.values import WILDCARDS
from router.core.ollama.names import key_of
from router.core.teams.identity import Identities
from router.core.teams.rights import TRUSTED, permit_of
from router.core.teams.signature import Verify
from router.core.teams.team import ANYONE, NO_CAPS, Caps, Identity, Team, TeamLimits, TeamMemory


@dataclass(frozen=True, slots=True, eq=False)
class Rulebook:
    """One rulebook; `serial` counts them within a process, `digest` is that of the configuration it was made from.

    `default_team` is the team of clients that show no key and connect from no team's network.
    """

    serial: int
    digest: str
    teams: tuple[Team, ...]
    default_team: Team
    defaults: Defaults
    clients: Clients
    chains: ChainRules = field(repr=False)
    _by_name: Mapping[str, Team] = field(repr=False)
    _chains_of: Mapping[Team, ChainRules] = field(repr=False)
    anyone: Identity = field(default=ANYONE, repr=False)
    """Who asks if nothing identifies the client."""

    identities: Identities | None = field(default=None, repr=False)
    """Who asks by key and network; None without teams."""

    @property
    def names(self) -> frozenset[str]:
        """The names of all teams, that of clients which nothing identifies included."""
        return frozenset((*self._by_name, self.default_team.name))

    def team(self, name: str) -> Team | None:
        """Return the team of that name, None if there is none now."""
        return self._by_name.get(name)

    def is_named(self, name: str) -> bool:
        """Return whether a team has a chain of that name for itself."""
        return any(name in rules.own for rules in self._chains_of.values())

    def preloads(self) -> Iterator[tuple[str, ChainRules]]:
        """Yield what to load at start: names, and the chain rules by which each has its chain."""
        yield from ((name, self.chains) for name in (*self.defaults.preload, *self.chains.preloaded))
        for rules in self._chains_of.values():
            yield from ((name, rules) for name in rules.preloaded)

    def chains_of(self, team: Team) -> ChainRules:
        """Return the chain rules for the requests of `team`; those of its successor if it is of another rulebook."""
        if not self._chains_of:  # common case: no team has rules of its own
            return self.chains
        found = self._chains_of.get(team)
        if found is None and (known := self._by_name.get(team.name)) is not None:
            found = self._chains_of.get(known)
        return self.chains if found is None else found


def rulebook_of(config: Config, serial: int = 1, verify: Verify | None = None) -> Rulebook:
    """Return the rulebook of a configuration. With a thousand teams this takes a moment: not on the loop.

    `verify` checks Ed25519 signatures, which identify the Ollama CLI.
    """
    chains = ChainRules(config.chains, config.defaults)
    teams: list[Team] = []
    chains_of: dict[Team, ChainRules] = {}
    for file in config.team_files:
        team, section = team_of(file), file.section
        teams.append(team)
        permit = permit_of(team) if team.allow or team.deny else None
        rule, most = section.nothing_fits, team.caps.num_ctx
        if section.chains or rule is not None or permit is not None or most is not None:
            chains_of[team] = ChainRules(
                section.chains, config.defaults, base=chains, nothing_fits=rule, permit=permit, max_num_ctx=most
            )
    by_name = {ANYONE.team.name: ANYONE.team} | {team.name: team for team in teams}
    default = by_name[config.default_team]
    anyone = ANYONE if default is ANYONE.team else Identity(default)
    digest = digest_of(config)
    unknown = TRUSTED.team if config.insecure_no_auth and default is ANYONE.team else default
    identities = Identities(teams, unknown, verify) if config.teams is not None else None
    return Rulebook(
        serial,
        digest,
        tuple(teams),
        default,
        config.defaults,
        config.clients,
        chains,
        by_name,
        chains_of,
        anyone,
        identities,
    )


def team_of(file: TeamFile) -> Team:
    """Return a team as its file describes it."""
    section = file.section
    return Team(
        name=section.team,
        keys=file.keys,
        networks=section.networks,
        rights=frozenset(section.rights),
        allow=section.models.allow,
        own=frozenset(key_of(name) for name in section.chains if not WILDCARDS.search(name)),
        deny=section.models.deny,
        manage_models=section.manage_models,
        share=section.share,
        limits=_limits(section),
        memory=TeamMemory(section.vram.floor, section.vram.cap),
        caps=_caps(section),
        nothing_fits=section.nothing_fits,
    )


def _limits(section: TeamSection) -> TeamLimits:
    return TeamLimits(**{name: getattr(section.limits, name) for name in type(section.limits).model_fields})


def _caps(section: TeamSection) -> Caps:
    caps = section.caps
    keep_alive_s = None if caps.keep_alive == math.inf else caps.keep_alive
    found = Caps(caps.num_ctx, keep_alive_s, caps.num_gpu, caps.nothing_fits)
    return NO_CAPS if found == NO_CAPS else found  # which is recognized without being compared


def digest_of(config: Config) -> str:
    """Return what differs between two configurations that are not equal: 16 hex digits."""
    whole = hashlib.sha256(config.model_dump_json().encode())
    whole.update(repr([(key.id, key.sha256, key.expires_s) for key in config.keys_of_admins]).encode())
    for file in config.team_files:
        whole.update(file.section.model_dump_json(by_alias=True).encode())
        whole.update(repr([(key.id, key.sha256, key.expires_s) for key in file.keys]).encode())
    return whole.hexdigest()[:16]
