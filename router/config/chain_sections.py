"""The section of chains: which variants may serve a requested model, and by which rules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, StrictBool

from router.config.section import Section, ShortForm
from router.config.values import ModelRef, NumCtx, allowed
from router.core.decision.chain_choices import Announce, NothingFits, Prefer, Upgrade

AutoChains = Literal["auto", "quantizations", "off"]


def _variant(value: object) -> object:
    if isinstance(value, (dict, VariantSection)):
        return value
    if isinstance(value, str):
        return {"model": value}
    raise allowed("a model name, or a mapping with model and num_ctx")


class VariantSection(Section):
    model: ModelRef
    """name of an installed model"""
    num_ctx: NumCtx = None
    """its context, cut to the model's maximum; max = the largest that fits; null = by request, Modelfile or defaults"""


VariantValue = Annotated[VariantSection, BeforeValidator(_variant), ShortForm({"type": "string", "minLength": 1})]


def _variants(value: object) -> object:
    if value in ("auto", "quantizations") or (isinstance(value, (list, tuple)) and value):
        return value
    raise allowed('"auto", "quantizations", or a list of at least one model')


def _chain(value: object) -> object:
    if isinstance(value, (dict, ChainSection)):
        return value
    if isinstance(value, (str, list, tuple)):
        return {"variants": value}
    raise allowed('"auto", "quantizations", a list of models, or a mapping with variants')


class ChainSection(Section):
    variants: Annotated[
        Literal["auto", "quantizations"] | tuple[VariantValue, ...],
        BeforeValidator(_variants),
    ]
    """models, biggest first; or auto, or quantizations (derived from the installed models)"""
    nothing_fits: NothingFits | None = None
    """as in defaults, for this chain"""
    upgrade: Upgrade | None = None
    """as in defaults, for this chain"""
    prefer: Prefer | None = None
    """as in defaults, for this chain"""
    announce: Announce | None = None
    """as in defaults, for this chain"""
    preload: StrictBool = False
    """at start, load the biggest variant that fits"""


ChainValue = Annotated[ChainSection, BeforeValidator(_chain), ShortForm("variants")]
