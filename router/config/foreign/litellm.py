"""LiteLLM's config.yaml: its model groups become chains, followed by the groups that they fall back to."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from router.config.foreign.draft import Draft, Rung, context_of, mapping, texts
from router.config.values import WILDCARDS

OLLAMA_PROVIDERS = ("ollama", "ollama_chat")
_USED = {"model", "api_base", "base_url", "custom_llm_provider", "num_ctx", "order"}
_CARRIED = {"model_list", "router_settings", "litellm_settings"}
_OLLAMA_PORT = 11434
MAX_FOLLOWED = 32
"""Groups in a chain; LiteLLM itself tries five fallbacks unless told otherwise."""


def read_litellm(data: dict[str, Any]) -> Draft:
    """Return the draft of a LiteLLM configuration.

    Deployments of one name are variants in the order of `order`, then of the file. Fallbacks follow, also those of
    fallbacks, as LiteLLM would reach them.
    """
    draft = Draft("LiteLLM")
    groups = _groups(data["model_list"], draft)
    settings = [mapping(data.get("litellm_settings")), mapping(data.get("router_settings"))]
    fallbacks, default = _fallbacks(settings, draft)
    aliases = _aliases(settings)
    for name in [*groups, *(alias for alias in aliases if alias not in groups)]:
        followed: list[str] = []
        _follow(aliases.get(name, name), fallbacks, default, aliases, followed)
        for missing in [one for one in followed if one not in groups]:
            draft.note(f"{name}: falls back to {missing}, which has no Ollama model")
        rungs = [rung for one in followed for rung in groups.get(one, [])]
        if rungs:
            draft.add_chain(name, rungs)
    _note_the_rest(data, settings, draft)
    return draft


def _groups(entries: list[Any], draft: Draft) -> dict[str, list[Rung]]:
    """Return the Ollama models of each model name, in the order in which LiteLLM prefers them."""
    found: dict[str, list[tuple[int, Rung]]] = {}
    foreign: list[str] = []
    for entry in map(mapping, entries):
        name, params = entry.get("model_name"), mapping(entry.get("litellm_params"))
        if not isinstance(name, str) or not isinstance(params.get("model"), str):
            draft.note("an entry of model_list without model_name or litellm_params.model")
            continue
        model = _ollama_model(params)
        if model is None:
            foreign.append(name)
            draft.note(f"{name}: {params['model']} is not served by Ollama")
        elif WILDCARDS.search(name + model):
            draft.note(f"{name}: not needed, because every installed model is served under its own name")
        else:
            order = params.get("order")
            rung = Rung(model, _num_ctx(params))
            found.setdefault(name, []).append((order if isinstance(order, int) else 1 << 30, rung))
            _note_params(name, params, draft)
            if base := params.get("api_base") or params.get("base_url"):
                draft.add_url(base, name)
    _note_balancing(found, draft)
    return {name: [rung for _, rung in sorted(rungs, key=lambda one: one[0])] for name, rungs in found.items()}


def _ollama_model(params: dict[str, Any]) -> str | None:
    """Return the name that Ollama knows, None if another provider serves the deployment."""
    model = str(params["model"])
    provider, slash, rest = model.partition("/")
    if params.get("custom_llm_provider") in OLLAMA_PROVIDERS:
        return rest if provider in OLLAMA_PROVIDERS else model
    if slash and provider in OLLAMA_PROVIDERS:
        return rest
    is_ollamas_v1 = provider in ("openai", "text-completion-openai") and _port(params.get("api_base")) == _OLLAMA_PORT
    return rest if slash and is_ollamas_v1 else None


def _port(base: object) -> int | None:
    try:
        return urlsplit(str(base)).port
    except ValueError:
        return None


def _num_ctx(params: dict[str, Any]) -> int | None:
    extra = mapping(params.get("extra_body"))
    places = (params, mapping(params.get("options")), extra, mapping(extra.get("options")))
    return next((found for place in places if (found := context_of(place.get("num_ctx")))), None)


def _fallbacks(settings: list[dict[str, Any]], draft: Draft) -> tuple[dict[str, list[str]], list[str]]:
    """Return the fallbacks of each name, and those of all other names."""
    found: dict[str, list[str]] = {}
    default: list[str] = []
    for section in settings:
        entries = section.get("fallbacks")
        for entry in map(mapping, entries if isinstance(entries, list) else [entries]):
            for name, names in entry.items():
                found.setdefault(name, []).extend(texts(names))
        default += texts(section.get("default_fallbacks"))
        for key in ("context_window_fallbacks", "content_policy_fallbacks"):
            if section.get(key):
                draft.note(f"{key}: the router skips variants whose context is too small by itself; no other rule")
    default += found.pop("*", [])
    return found, default


def _aliases(settings: list[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for section in settings:
        for alias, target in mapping(section.get("model_group_alias")).items():
            name = mapping(target).get("model", target)
            if isinstance(name, str):
                found[alias] = name
    return found


def _follow(
    name: str, fallbacks: dict[str, list[str]], default: list[str], aliases: dict[str, str], followed: list[str]
) -> None:
    """Append `name` and what follows it to `followed`, each once, up to MAX_FOLLOWED: a circle ends, too."""
    waiting = [name]
    while waiting and len(followed) < MAX_FOLLOWED:
        one = waiting.pop(0)
        one = aliases.get(one, one)
        if one not in followed:
            followed.append(one)
            waiting = [*(fallbacks.get(one) or (default if one == name else [])), *waiting][: 2 * MAX_FOLLOWED]


def _note_params(name: str, params: dict[str, Any], draft: Draft) -> None:
    """Name the parameters that are left out; their values may be secrets."""
    rest = sorted(set(params) - _USED - {"api_key"})
    if rest:
        draft.note(f"{name}: {', '.join(rest)} (set what the model itself needs in a Modelfile)")


def _note_balancing(found: dict[str, list[tuple[int, Rung]]], draft: Draft) -> None:
    for name, rungs in found.items():
        if len({rung for _, rung in rungs}) > 1:
            draft.note(f"{name}: LiteLLM distributes requests among its models; here the first that fits is used")


def _note_the_rest(data: dict[str, Any], settings: list[dict[str, Any]], draft: Draft) -> None:
    rest = sorted(set(data) - _CARRIED)
    rest += sorted({key for section in settings for key in section} - {"fallbacks", "default_fallbacks"} - _NOTED)
    if rest:
        draft.note(f"{', '.join(rest)}: settings of LiteLLM itself")


_NOTED = {"context_window_fallbacks", "content_policy_fallbacks", "model_group_alias"}
