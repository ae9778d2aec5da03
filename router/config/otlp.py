"""Where traces are sent, and how many."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from router.config.section import Section
from router.config.values import AtLeastOne, Positive, Url


class Otlp(Section):
    endpoint: Url | None = None
    """collector for traces by OTLP over HTTP, as http://127.0.0.1:4318; null = no traces. Needs ollama-router[otel]"""
    sample: Annotated[float, Field(ge=0, le=1, strict=True)] = 1.0
    """part of the traces that begin here that is recorded, 0 to 1; of a client's trace the client has decided"""
    every_s: Positive = 1.0
    """how often traces are sent"""
    timeout_s: Positive = 10.0
    """longest attempt to send them"""
    max_waiting: AtLeastOne = 2048
    """most requests whose traces wait to be sent; with more the oldest are dropped"""
