"""The variables of a Kubernetes service with the router's name do not stop it; others that look alike do."""

import pytest

from router.config import Config, load_config
from router.errors import ConfigError

LINKS = {
    "OLLAMA_ROUTER_SERVICE_HOST": "10.96.14.7",
    "OLLAMA_ROUTER_SERVICE_PORT": "11434",
    "OLLAMA_ROUTER_SERVICE_PORT_HTTP_API": "11434",
    "OLLAMA_ROUTER_PORT": "tcp://10.96.14.7:11434",
    "OLLAMA_ROUTER_PORT_11434_TCP": "tcp://10.96.14.7:11434",
    "OLLAMA_ROUTER_PORT_11434_TCP_PROTO": "tcp",
    "OLLAMA_ROUTER_PORT_11434_TCP_PORT": "11434",
    "OLLAMA_ROUTER_PORT_11434_TCP_ADDR": "10.96.14.7",
    "OLLAMA_ROUTER_PORT_53_UDP": "udp://10.96.14.7:53",
    "OLLAMA_ROUTER_PORT_9_SCTP_PROTO": "sctp",
    "OLLAMA_ROUTER_ADMIN_SERVICE_HOST": "fd00::7",
    "OLLAMA_ROUTER_ADMIN_PORT": "tcp://[fd00::7]:11436",
    "OLLAMA_ROUTER_ADMIN_PORT_11436_TCP_ADDR": "fd00::7",
}
OTHERS = {
    "OLLAMA_ROUTER_PORT": "11434",
    "OLLAMA_ROUTER_SERVICE_HOST": "gpu.lan",
    "OLLAMA_ROUTER_SERVICE_PORT": "tcp",
    "OLLAMA_ROUTER_SERVICE": "10.96.14.7",
    "OLLAMA_ROUTER_PORT_11434": "tcp://10.96.14.7:11434",
    "OLLAMA_ROUTER_PORT_11434_TCP_NAME": "tcp",
    "OLLAMA_ROUTER_HOST": "10.96.14.7",
    "OLLAMA_ROUTER_LISTEN_ADDR": "10.96.14.7",
    "ollama_router_service_host": "10.96.14.7",
    "OLLAMA_ROUTER_QUEUE__SERVICE_HOST": "10.96.14.7",
}


@pytest.mark.parametrize(("name", "value"), LINKS.items())
def test_a_variable_of_kubernetes_is_ignored(name: str, value: str) -> None:
    """Each form."""
    assert load_config(env={name: value}) == Config()


@pytest.mark.parametrize(("name", "value"), OTHERS.items())
def test_another_variable_that_is_no_key_stops_the_start(name: str, value: str) -> None:
    """It may be a misspelt key."""
    with pytest.raises(ConfigError, match=f"environment: {name}"):
        load_config(env={name: value})


def test_keys_are_read_beside_the_variables_of_kubernetes() -> None:
    """Those of the router's own prefix still count."""
    assert load_config(env={**LINKS, "OLLAMA_ROUTER_HOSTS": "[gpu.lan]"}).hosts == ("gpu.lan",)
