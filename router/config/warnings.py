"""What is allowed in a configuration but helps nobody, for `ollama-router check`."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator

from router.config.chain_warnings import NAMES_ONLY, Knowledge, chain_warnings, covers
from router.config.places import Places
from router.config.problems import Path
from router.config.root import Config
from router.config.team_files import TeamFile
from router.config.values import WILDCARDS
from router.core.ollama.name_patterns import NamePatterns, is_cloud_pattern
from router.core.ollama.names import ModelName

MOST_WARNINGS = 100


def config_warnings(config: Config, places: Places, unix_s: float, known: Knowledge = NAMES_ONLY) -> list[str]:
    """Return a line for each of them at Unix time `unix_s`, with file and line."""
    found = [f"{places.of(path)}: {text}" for path, text in chain_warnings(config.chains, known)]
    for file in config.team_files:
        warnings = (
            *chain_warnings(file.section.chains, known),
            *_forbidden(file),
            *_expired(file, unix_s),
            *_vain_management(file),
            *_matching_nothing(file, _names_of(config, file, known)),
        )
        found += [f"{places.of(path, file.path)}: {text}" for path, text in warnings]
        if len(found) >= MOST_WARNINGS:
            break
    return found[:MOST_WARNINGS]


def _forbidden(file: TeamFile) -> Iterator[tuple[Path, str]]:
    """Yield each chain of a team that the team itself may not ask for."""
    for name in file.section.chains:
        denied = next((pattern for pattern in file.section.models.deny if covers(pattern, name)), None)
        if denied is not None:
            yield ("chains", name), f"the chain {name} is never used: models.deny has {denied}"


def _expired(file: TeamFile, unix_s: float) -> Iterator[tuple[Path, str]]:
    for index, key in enumerate(file.keys):
        if key.expires_s is not None and key.expires_s <= unix_s:
            yield ("keys", index), f"the key {key.id} has expired"


def _vain_management(file: TeamFile) -> Iterator[tuple[Path, str]]:
    """Yield a right that is for no model, or models without the right."""
    rights, models = file.section.rights, file.section.manage_models
    if "manage" in rights and not models:
        yield ("rights", rights.index("manage")), "the right manage allows nothing: manage_models names no model"
    if models and "manage" not in rights:
        yield ("manage_models",), "manage_models has no effect: rights does not have manage"


def _names_of(config: Config, file: TeamFile, known: Knowledge) -> tuple[str, ...]:
    """Return the names that a pattern of the team may be meant for, () if they are not known."""
    if not known.installed:
        return ()
    chains = (*config.chains, *file.section.chains)
    return (*known.installed, *(name for name in chains if not WILDCARDS.search(name)))


def _matching_nothing(file: TeamFile, names: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Yield each pattern of allow and deny that matches none of `names`; those of the cloud cannot."""
    parsed = [ModelName.parse(name) for name in names]
    for key in ("allow", "deny") if parsed else ():
        for index, pattern in enumerate(getattr(file.section.models, key)):
            if is_cloud_pattern(pattern) or any(map(NamePatterns((pattern,)).match, parsed)):
                continue
            near = difflib.get_close_matches(pattern.lower(), [name.lower() for name in names], n=1, cutoff=0.6)
            hint = f" (did you mean {near[0]}?)" if near else ""
            yield ("models", key, index), f"models.{key}: {pattern} matches no installed model and no chain{hint}"
