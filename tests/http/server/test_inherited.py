"""What the environment says of inherited sockets may be anything."""

import os

import pytest

from router.errors import ConfigError
from router.http.server.inherited import inherited


@pytest.mark.parametrize("count", ["", "x", "-1", "0", "9" * 5000, "1.5"])
def test_a_number_that_is_none_stands_for_no_sockets(count):
    """And the variables are gone, so that no child process uses them."""
    env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": "a", "HOME": "x"}
    assert inherited(env, first_fd=1000) == []
    assert env == {"HOME": "x"}


def test_more_sockets_than_there_are_is_one_clear_line():
    """At the first that is missing."""
    env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "999999999"}
    with pytest.raises(ConfigError, match="descriptor 100000 .*allowed: a TCP socket that listens"):
        inherited(env, first_fd=100_000)
