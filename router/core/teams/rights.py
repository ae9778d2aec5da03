"""What a team may do: per route by its rights, per model by its patterns. Pure; whatever is not allowed is refused.

A deny pattern overrides everything else. Models within `manage_models` may be used, too; a model of Ollama's cloud only
if an allow pattern names the cloud, because its requests leave the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from router.core.go.quoting import brief, go_quoted
from router.core.ollama.derived_names import is_derived
from router.core.ollama.name_patterns import NamePatterns
from router.core.ollama.names import ModelName, Source, is_name
from router.core.ollama.routes import Right as RouteRight
from router.core.ollama.routes import Route
from router.core.teams.team import ALL_RIGHTS, Identity, Right, Team
from router.errors import BadRequest, Forbidden, Unauthorized

TRUSTED = Identity(Team("anonymous", rights=ALL_RIGHTS, manage_models=("*",)))
"""A client of this machine on a router without teams, which could ask Ollama directly."""

REMOTE_REFUSED = "ollama cloud is disabled: remote model is unavailable"
"""Ollama's own text where its cloud is disabled."""

DEFAULT_REGISTRIES = ("registry.ollama.ai", "hf.co", "huggingface.co")

NEEDED: dict[RouteRight, Right] = {"infer": "infer", "read": "read", "manage": "manage", "account": "admin"}
"""The right of a team that a route needs."""

_ACTS = {
    "pull": "pull models",
    "push": "push models",
    "create": "create models",
    "copy": "copy models",
    "delete": "delete models",
    "blob_put": "upload files",
    "blob_head": "ask for uploaded files",
    "web_search": "search the web",
    "web_fetch": "fetch web pages",
}
_BY_RIGHT = {"infer": "use models", "read": "list models", "manage": "manage models", "admin": "use the account"}
_MOST_TEAMS, _MOST_NAMES = 4096, 256


class Permit:
    """The rights of one team."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.is_admin = "admin" in team.rights
        self._allow, self._deny = NamePatterns(team.allow), NamePatterns(team.deny)
        self._manage = NamePatterns(team.manage_models)
        self.is_open = self.is_admin and not (self._allow or self._deny)
        self.may_use_cloud = self.is_admin or self._allow.names_cloud
        self.manages_any = self.is_admin or ("manage" in team.rights and bool(self._manage))
        self._use_cached = lru_cache(maxsize=_MOST_NAMES)(self._may_use)

    def may_use(self, name: str) -> bool:
        """Return whether the team may use and see `name`, in any spelling.

        Raise BadRequest for what is not a name, unless the team has no patterns: then Ollama answers that itself.
        """
        return self.is_open or self._use_cached(name)

    def _may_use(self, name: str) -> bool:
        if not (self._allow or self._deny or is_name(name)):
            return True
        parsed = ModelName.parse(name)
        if self._deny.match(parsed) or (parsed.source is Source.CLOUD and not self.may_use_cloud):
            return False
        if is_derived(parsed.key):  # another name of some model, which no pattern can be meant for
            return not (self._allow or self._deny)
        if not self._allow or self.is_admin or parsed.key in self.team.own:
            return True
        return self._allow.match(parsed) or ("manage" in self.team.rights and self._manage.match(parsed))

    def denies(self, name: str) -> bool:
        """Return whether a deny pattern of the team matches `name`, which is a name."""
        return bool(self._deny) and self._deny.match(ModelName.parse(name))

    def may_see(self, name: str) -> bool:
        """Return whether a list shows `name` to the team. What is not a name is shown to those without patterns."""
        try:
            return self.may_use(name)
        except BadRequest:
            return False

    def may_manage(self, name: str) -> bool:
        """Return whether the team may pull, create, overwrite and delete `name`. Raise BadRequest if it is no name."""
        if self.is_open:
            return True
        parsed = ModelName.parse(name)
        if self._deny.match(parsed) or is_derived(parsed.key):
            return False
        return self.is_admin or ("manage" in self.team.rights and self._manage.match(parsed))


@lru_cache(maxsize=_MOST_TEAMS)
def permit_of(team: Team) -> Permit:
    """Return the permit of a team. Cached: teams are compared by identity, and a reload makes new ones."""
    return Permit(team)


def forget_permits() -> None:
    """Forget the permits of all teams: those of before a reload are hardly asked for any more."""
    permit_of.cache_clear()


def check_route(identity: Identity, route: Route) -> None:
    """Raise Forbidden if the identity lacks the right that `route` needs; Unauthorized if it has shown no key."""
    needed = NEEDED[route.right]
    if needed not in identity.team.rights:
        raise _refusal(identity, needed, _ACTS.get(route.kind, _BY_RIGHT[needed]))
    if needed == "manage" and not permit_of(identity.team).manages_any:
        raise _refusal(identity, "manage_models", _ACTS[route.kind])


def check_use(identity: Identity, name: str) -> None:
    """Raise Forbidden if the identity may not use the model `name`; BadRequest if it is not a name."""
    permit = permit_of(identity.team)
    if permit.may_use(name):
        return
    if not permit.may_use_cloud and ModelName.parse(name).source is Source.CLOUD:
        raise Forbidden(REMOTE_REFUSED, model=name)
    raise Forbidden(
        f"team {identity.team.name} may not use the model {_shown(name)}; "
        "to allow it, change models: {allow: …, deny: …} in the team's file",
        model=name,
    )


def check_management(identity: Identity, kind: str, names: Mapping[str, str], registries: Iterable[str]) -> None:
    """Raise Forbidden if the identity may not do `kind` (pull, push, create, copy or delete) to these `names` by role.

    `registries` are the hosts that names may have. For those with the right admin there is no such limit.
    """
    permit = permit_of(identity.team)
    for role, name in names.items():
        if role in ("source", "from"):
            check_use(identity, name)
        elif not permit.may_manage(name):
            raise Forbidden(_outside(identity.team, kind, name))
        if not permit.is_admin and kind != "delete":
            _check_registry(name, registries)


def check_remote_host(identity: Identity, remote_host: str, allowed: Iterable[str]) -> None:
    """Raise Forbidden if the identity may not create a model that `remote_host` runs."""
    host = remote_host.strip().lower().partition("://")[2] or remote_host.strip().lower()
    if permit_of(identity.team).is_admin or host.partition("/")[0] in allowed:
        return
    raise Forbidden(
        f"remote_host {_shown(remote_host)} is not allowed on this router; "
        "to allow it, add its host to clients: {remote_hosts: […]} in the router's configuration"
    )


def _check_registry(name: str, registries: Iterable[str]) -> None:
    host = ModelName.parse(name).host.lower()
    if host not in registries:
        raise Forbidden(
            f"the registry {_shown(host)} is not allowed on this router; "
            "to allow it, add it to clients: {registries: […]} in the router's configuration"
        )


def _outside(team: Team, kind: str, name: str) -> str:
    within = ", ".join(team.manage_models)
    return (
        f"team {team.name} may {kind} only models within its manage_models ({within}) that it is not denied, "
        f"not {_shown(name)}"
    )


def _refusal(identity: Identity, missing: str, act: str) -> Forbidden | Unauthorized:
    """Return the error that says why the identity may not `act`, and how it can be allowed to."""
    grant = (
        "rights: [infer, read, manage] and manage_models" if missing.startswith("manage") else f"rights: [{missing}]"
    )
    who = f"team {identity.team.name}" if identity.key_id else "a client without a key"
    if missing == "admin":
        why = f"{who} may not {act} on this router: that is for the machine of Ollama itself, or insecure_no_auth"
        return Forbidden(why)
    if identity.key_id:
        lack = "manage_models names none" if missing == "manage_models" else f"it lacks the right {missing}"
        return Forbidden(f"{who} may not {act}: {lack}; to allow it, set {grant} in the team's file")
    return Unauthorized(
        f"{who} may not {act} on this router; use the key of a team with {grant}, which ollama-router keys new makes "
        "(OLLAMA_HOST=http://HOST:PORT/t/KEY for the ollama command), or Ollama on its own machine"
    )


def _shown(name: str) -> str:
    return go_quoted(brief(name))
