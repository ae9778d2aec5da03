"""llama-swap's config.yaml: its models become chains of one model, which Ollama must have or get."""

from __future__ import annotations

import re
import shlex
from typing import Any

from router.config.foreign.draft import Draft, Rung, context_of, mapping, texts

_MACRO = re.compile(r"\$\{([A-Za-z0-9_-]+)\}")
_MAX_COMMAND = 64 << 10
_FILE = ("-m", "--model")
_HUGGING_FACE = ("-hf", "-hfr", "--hf-repo")
_CONTEXT = ("-c", "--ctx-size")
_SLOTS = ("-np", "--parallel")
_CACHE = ("-ctk", "--cache-type-k")
_USED = {"cmd", "aliases", "macros", "name", "description", "unlisted", "useModelName", "proxy", "checkEndpoint"}


def read_llama_swap(data: dict[str, Any]) -> Draft:
    """Return the draft of a llama-swap configuration; a line for each model says how Ollama gets it."""
    draft = Draft("llama-swap")
    macros = mapping(data.get("macros"))
    for name, model in mapping(data["models"]).items():
        _read_model(name, mapping(model), macros, draft)
    _read_groups(data, draft)
    if (ttl := data.get("globalTTL")) is not None and (ttl == 0 or context_of(ttl)):
        draft.defaults["keep_alive_s"] = context_of(ttl) or "forever"
    rest = sorted(set(data) - {"models", "macros", "groups", "matrix", "routing", "hooks", "globalTTL"})
    if rest:
        draft.note(f"{', '.join(rest)}: settings of llama-swap itself")
    return draft


def _read_model(name: str, model: dict[str, Any], macros: dict[str, Any], draft: Draft) -> None:
    words = _words(str(model.get("cmd", "")), {**macros, **mapping(model.get("macros")), "MODEL_ID": name})
    if words is None:
        draft.note(f"{name}: its cmd cannot be read")
        return
    rung = Rung(_ollama_name(name, model, words, draft), _num_ctx(name, words, draft))
    draft.add_chain(name, [rung])
    own = [alias if isinstance(alias, str) else mapping(alias).get("id") for alias in _list(model.get("aliases"))]
    for alias in texts(own):
        draft.add_chain(alias, [rung])
    if cache := _value(words, _CACHE):
        draft.note(f"{name}: --cache-type-k {cache} is OLLAMA_KV_CACHE_TYPE in Ollama, for all models")
    rest = sorted(set(model) - _USED)
    if rest:
        draft.note(f"{name}: {', '.join(rest)}")


def _words(command: str, macros: dict[str, Any]) -> list[str] | None:
    """Return the words of a command with its macros replaced; None if it cannot be split or grows too long."""
    for _ in range(len(macros) + 1):  # a macro may contain others
        # Replaced one at a time, so that macros that multiply end at the limit instead of in memory.
        for found in list(dict.fromkeys(_MACRO.findall(command))):
            value = macros.get(found)
            if isinstance(value, (str, int, float)):
                if len(command) + command.count("${" + found + "}") * len(str(value)) > _MAX_COMMAND:
                    return None
                command = command.replace("${" + found + "}", str(value))
    lines = [line for line in command.splitlines() if not line.lstrip().startswith("#")]
    try:
        return shlex.split(" ".join(line.rstrip().removesuffix("\\") for line in lines))
    except ValueError:
        return None


def _value(words: list[str], options: tuple[str, ...]) -> str | None:
    """Return the value of an option, written as `-c 1` or `--ctx-size=1`."""
    for at, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in options and (equals or at + 1 < len(words)):
            return value if equals else words[at + 1]
    return None


def _ollama_name(name: str, model: dict[str, Any], words: list[str], draft: Draft) -> str:
    """Return the name under which Ollama has the model, and note how it gets there."""
    if repository := _value(words, _HUGGING_FACE):
        found = f"hf.co/{repository}"
        draft.note(f"{name}: get it with: ollama pull {found}")
        return found
    if isinstance(model.get("useModelName"), str) and "ollama" in " ".join(words):
        return str(model["useModelName"])
    file = _value(words, _FILE)
    if file and file.lower().endswith(".gguf"):
        draft.note(f"{name}: create it from a Modelfile with the line: FROM {file}")
    else:
        draft.note(f"{name}: its cmd names no GGUF file; Ollama needs a model of this name")
    return name


def _num_ctx(name: str, words: list[str], draft: Draft) -> int | None:
    """Return the context of one slot: llama-server divides its own among them."""
    num_ctx, slots = context_of(_value(words, _CONTEXT)), context_of(_value(words, _SLOTS)) or 1
    if slots > 1:
        draft.note(f"{name}: {slots} slots are OLLAMA_NUM_PARALLEL={slots} in Ollama, for all models")
    return max(1, num_ctx // slots) if num_ctx else None


def _read_groups(data: dict[str, Any], draft: Draft) -> None:
    """Carry over what stays loaded (persistent groups) and what is loaded at start; the rest is decided by memory."""
    groups = mapping(data.get("groups"))
    kept = [one for group in map(mapping, groups.values()) if group.get("persistent") for one in _members(group)]
    start = texts(mapping(mapping(data.get("hooks")).get("on_startup")).get("preload"))
    for key, names in (("keep", kept), ("preload", start)):
        models = [rung.model for name in names for rung in draft.chains.get(name, [])]
        if models:
            draft.defaults[key] = list(dict.fromkeys(models))
    for key in ("groups", "matrix", "routing"):
        if data.get(key):
            draft.note(f"{key}: models stay loaded together if they fit into the memory that is free")


def _members(group: dict[str, Any]) -> list[str]:
    return texts(_list(group.get("members")))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
