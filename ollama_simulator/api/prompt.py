"""Prompts: messages converted to a template's values, old messages dropped if they do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ollama_simulator.gojson import dump
from ollama_simulator.models import tokens
from ollama_simulator.models.installed import Installed
from ollama_simulator.models.template import Json, Template


@lru_cache(maxsize=256)
def _parsed(text: str) -> Template:
    return Template.parse(text)


def collate(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """All system texts joined, and the messages with adjacent ones of the same role merged (except tool results)."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        role = message.get("role") or ""
        if joined and joined[-1]["role"] == role and role != "tool":
            joined[-1]["content"] += "\n\n" + (message.get("content") or "")
        else:
            joined.append({**message, "role": role, "content": message.get("content") or ""})
    return "\n\n".join(m.get("content") or "" for m in messages if m.get("role") == "system"), joined


def render(
    template: Template,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    think: bool | str | None,
) -> str:
    """Return the prompt of some messages."""
    flags = _flags(think)
    system, joined = collate(messages)
    if template.uses("Messages"):
        values = {"System": system, "Messages": [_message(m) for m in joined], "Tools": [_tool(t) for t in tools]}
        return template.render({**values, "Response": "", **flags})
    return _legacy(template, joined, flags)


def _flags(think: bool | str | None) -> dict[str, Any]:
    level = think if isinstance(think, str) else ""
    return {"Think": bool(think), "ThinkLevel": level, "IsThinkSet": think is not None}


def _legacy(template: Template, messages: Sequence[Mapping[str, Any]], flags: Mapping[str, Any]) -> str:
    """Render a template with .System, .Prompt and .Response, once per exchange."""
    if not template.uses("Response"):
        template = _parsed(template.text + "{{ .Response }}")
    out: list[str] = []
    turn = {"System": "", "Prompt": "", "Response": ""}
    for message in messages:
        role, content = message["role"], message["content"]
        if (role == "system" and (turn["Prompt"] or turn["Response"])) or (role == "user" and turn["Response"]):
            out.append(template.render({**turn, **flags}))
            turn = {"System": "", "Prompt": "", "Response": ""}
        field = {"system": "System", "user": "Prompt", "assistant": "Response"}.get(role)
        if field:
            turn[field] = content
    out.append(template.render({**turn, **flags}, until="Response"))
    if turn["Response"]:
        out.append(turn["Response"])
    return "".join(out)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = [
        {
            "ID": call.get("id", ""),
            "Function": {
                "Name": (call.get("function") or {}).get("name", ""),
                "Arguments": Json((call.get("function") or {}).get("arguments") or {}),
            },
        }
        for call in message.get("tool_calls") or ()
    ]
    return {
        "Role": message.get("role", ""),
        "Content": message.get("content", ""),
        "Thinking": message.get("thinking") or "",
        "ToolCalls": calls,
        "ToolName": message.get("tool_name") or "",
        "ToolCallID": message.get("tool_call_id") or "",
    }


def _tool(tool: Mapping[str, Any]) -> Json:
    """Return a tool, which prints as JSON; its `.Function` prints as a Go struct."""
    function = tool.get("function") or {}
    parameters = function.get("parameters") or {}
    inner: dict[str, Any] = {"type": parameters.get("type") or ""}
    for key in ("$defs", "items", "required"):
        if parameters.get(key):
            inner[key] = parameters[key]
    inner["properties"] = _properties(parameters.get("properties"))
    name, description = function.get("name") or "", function.get("description") or ""
    shown = {"name": name, "description": description, "parameters": inner}
    fields = {"Name": name, "Description": description, "Parameters": Json(inner)}
    kind = tool.get("type") or ""
    return _Shown({"Type": kind, "Function": _Struct(fields, inner)}, {"type": kind, "function": shown})


def _properties(properties: Mapping[str, Any] | None) -> dict[str, Any]:
    """Properties in the order of a Go map: keys sorted, the fields of each in the struct's order."""
    return {name: _property(value or {}) for name, value in sorted((properties or {}).items())}


def _property(value: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("anyOf", "type", "items", "description", "enum", "properties", "required")
    made = {key: value[key] for key in keys if value.get(key) or (key == "type" and value.get(key) == "")}
    if "anyOf" in made:
        made["anyOf"] = [_property(item or {}) for item in made["anyOf"]]
    if "properties" in made:
        made["properties"] = _properties(made["properties"])
    return made


class _Shown(Json):
    """A tool: fields for the template, JSON for printing."""

    def __init__(self, fields: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self._shown = Json(shown)

    def __str__(self) -> str:
        return str(self._shown)


class _Struct(dict[str, Any]):
    """A tool's function: fields for the template, Go's ``{name description {…}}`` for printing."""

    def __init__(self, fields: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self._parameters = parameters

    def __str__(self) -> str:
        inner = self._parameters
        parts = [inner["type"], _go(inner.get("$defs")), _go(inner.get("items")), _go(inner.get("required") or [])]
        properties = inner.get("properties")
        parts.append(str(Json(properties)) if properties is not None else "null")
        return f"{{{self['Name']} {self['Description']} {{{' '.join(parts)}}}}}"


def _go(value: Any) -> str:
    if value is None:
        return "<nil>"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{_go(item)}" for key, item in sorted(value.items())) + "]"
    if isinstance(value, bool | int | float):
        return dump(value).decode()
    return "[" + " ".join(map(_go, value)) + "]" if isinstance(value, list) else str(value)


def chat_prompt(
    model: Installed,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    think: bool | str | None,
    num_ctx: int,
    truncate: bool,
) -> str:
    """Return the prompt of a chat. With `truncate`, the oldest messages are cut until it fits; system messages stay."""
    template = _parsed(model.template)
    first = 0
    if truncate:
        for first in range(len(messages)):
            prompt = render(template, _from(messages, first), tools, think)
            if len(tokens.encode(model.weights, prompt)) <= num_ctx:
                return prompt
    return render(template, _from(messages, first), tools, think)


def _from(messages: Sequence[Mapping[str, Any]], first: int) -> list[Mapping[str, Any]]:
    return [message for message in messages[:first] if message.get("role") == "system"] + list(messages[first:])


def tagged(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], int]:
    """Return the messages with a tag for each image, and the number of images: at each ``[img]``, else in front."""
    made: list[Mapping[str, Any]] = []
    count = 0
    for message in messages:
        content, front = message.get("content") or "", ""
        for _ in message.get("images") or ():
            tag = f"[img-{count}]"
            content, front = (content.replace("[img]", tag, 1), front) if "[img]" in content else (content, front + tag)
            count += 1
        made.append({**message, "content": front + content} if message.get("images") else message)
    return made, count


def generate_prompt(
    model: Installed, request: Mapping[str, Any], think: bool | str | None, num_ctx: int, truncate: bool
) -> str:
    """Return the prompt of `/api/generate`. Raises TemplateError."""
    prompt: str = request["prompt"]
    if request.get("raw"):
        return prompt
    own = request.get("template")
    template = Template.parse(own) if own else _parsed(model.template)
    context = request.get("context")
    before = tokens.decode(model.weights, [number or 0 for number in context]) if context is not None else ""
    if request.get("suffix"):
        values = {"Prompt": prompt, "Suffix": request["suffix"], "Response": "", **_flags(think)}
        return before + template.render(values)
    messages: list[Mapping[str, Any]] = []
    system = request.get("system") or model.system
    if system:
        messages.append({"role": "system", "content": system})
    if request.get("context") is None:
        messages += model.messages
    messages += tagged([{"role": "user", "content": prompt, "images": request.get("images")}])[0]
    if own:
        return before + render(template, messages, (), think)
    return before + chat_prompt(model, messages, (), think, num_ctx, truncate)
