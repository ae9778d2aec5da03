"""`backends.NAME.discover`: where the nodes of a front are found."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, StrictInt, WithJsonSchema, model_validator

from router.config.names import Host
from router.config.section import Section
from router.config.values import Positive, Url, allowed

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_SERVICE = re.compile(rf"{_LABEL}/{_LABEL}")


def parse_service(value: object) -> str:
    """Parse namespace/service."""
    if isinstance(value, str) and _SERVICE.fullmatch(text := value.strip()):
        return text
    raise allowed('the namespace and the name of a Service, such as "llm/nodes"')


Port = Annotated[StrictInt, Field(ge=1, le=65535)]
Service = Annotated[str, BeforeValidator(parse_service), WithJsonSchema({"type": "string", "pattern": "/"})]


class Discover(Section):
    static: tuple[Url, ...] = ()
    """URLs of the nodes"""
    dns: Host | None = None
    """a name whose addresses are the nodes, as of a headless Service"""
    port: Port = 11435
    """for dns and endpointslices: port of the nodes"""
    tls_name: Host | None = None
    """for dns and endpointslices: nodes are asked over TLS and have certificates of this name; null = without TLS"""
    every_s: Positive = 5.0
    """for dns: how often the name is asked for; for endpointslices: pause after a failure"""
    endpointslices: Service | None = None
    """NAMESPACE/SERVICE in Kubernetes, whose ready endpoints are the nodes"""
    api: Url | None = None
    """for endpointslices: URL of the API server; null = that of the cluster in which the router runs"""

    @property
    def ways(self) -> tuple[str, ...]:
        """The keys that say where nodes are, of those that are set."""
        return tuple(key for key in ("static", "dns", "endpointslices") if getattr(self, key))

    @property
    def is_tls(self) -> bool:
        """True if nodes are asked over TLS, or some of those that are listed."""
        return self.tls_name is not None or any(url.startswith("https:") for url in self.static)

    @model_validator(mode="after")
    def _has_a_name_for_those_that_are_found(self) -> Discover:
        if self.tls_name is not None and not (self.dns or self.endpointslices):
            raise allowed("tls_name together with dns or endpointslices; a URL of static says https itself")
        return self

    @model_validator(mode="after")
    def _is_one_way(self) -> Discover:
        if len(self.ways) > 1:
            raise allowed("one of static, dns and endpointslices")
        return self
