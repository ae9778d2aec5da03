"""Writes a draft as a configuration file of this router."""

from __future__ import annotations

import io
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from router.config.foreign.draft import Draft, Rung
from router.config.root import Config, inconsistencies


def write(draft: Draft, name: str) -> str:
    """Return the YAML text of `draft`, which was read from the file `name`. It is always a valid configuration."""
    data = _valid(draft)
    shown = "".join(char if char.isprintable() else " " for char in name)
    lines = [f"# The equivalent of {shown} ({draft.kind}). Check it with: ollama-router check FILE"]
    if draft.left_out:
        lines.append("# Without an equivalent, or to be done by hand:")
        lines += [f"#   {line}" for line in draft.left_out]
    return "\n".join(lines) + "\n" + (_dumped(data) if data else "")


def _valid(draft: Draft) -> dict[str, Any]:
    """Return the data of the file, without chains that contradict each other."""
    for other in draft.urls[1:]:
        draft.note(f"{other}: another server; the router has one backend, which needs the models of all")
    while True:
        data = _data(draft)
        try:
            found = [problem.path for problem in inconsistencies(Config.model_validate(data))]
        except ValidationError as exc:
            found = [error["loc"] for error in exc.errors()]
        wrong = [path for path in found if len(path) > 1 and path[0] == "chains" and path[1] in draft.chains]
        if not found:
            return data
        if wrong:
            draft.chains.pop(str(wrong[0][1]))
            draft.note(f"{wrong[0][1]}: its models refer back to it")
        elif draft.defaults:
            draft.note(f"{', '.join(draft.defaults)}: not valid here")
            draft.defaults.clear()
        else:
            draft.note(f"{draft.urls[0]}: the address of this router itself")
            draft.urls.clear()


def _data(draft: Draft) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if draft.urls:
        data["backends"] = {"local": {"url": draft.urls[0]}}
    if draft.chains:
        data["chains"] = {name: [_rung(rung) for rung in rungs] for name, rungs in draft.chains.items()}
    if draft.defaults:
        data["defaults"] = dict(draft.defaults)
    return data


def _rung(rung: Rung) -> str | dict[str, Any]:
    return rung.model if rung.num_ctx is None else {"model": rung.model, "num_ctx": rung.num_ctx}


def _dumped(data: dict[str, Any]) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.width = 110
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    yaml.dump(data, text)
    return text.getvalue()
