"""The base class of all sections (frozen, unknown keys are errors), and the JSON schema of a section's short form."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema


class Section(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


class ShortForm:
    """The JSON schema of what may stand in place of a section's mapping."""

    def __init__(self, short: dict[str, Any] | str) -> None:
        self.short = short

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        whole = handler(core)
        if isinstance(self.short, dict):
            return {"anyOf": [self.short, whole]}
        return {"anyOf": [handler.resolve_ref_schema(whole)["properties"][self.short], whole]}
