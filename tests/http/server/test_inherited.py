"""What the environment says of inherited sockets may be anything."""

import os
import socket
from contextlib import suppress

import pytest

from router.errors import ConfigError
from router.http.server.inherited import inherited

FREE_FD = 900


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


@pytest.fixture(name="handed")
def _handed():
    """Return a function that hands a socket to this process, as systemd does: at a descriptor that children inherit."""
    fds = []

    def hand(sock):
        os.dup2(sock.fileno(), FREE_FD, inheritable=True)
        sock.close()
        fds.append(FREE_FD)
        return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}

    yield hand
    for fd in fds:
        with suppress(OSError):  # closed by the socket that was made of it
            os.close(fd)


def test_a_tcp_socket_that_listens_is_taken_with_its_name(handed):
    """It never blocks the loop, and no child process holds it open."""
    sock = socket.create_server(("127.0.0.1", 0))
    address = sock.getsockname()
    [(name, found)] = inherited(handed(sock), first_fd=FREE_FD)
    with found:
        assert (name, found.getsockname(), found.fileno()) == ("web", address, FREE_FD)
        assert (found.get_inheritable(), found.getblocking()) == (False, False)
        with socket.create_connection(address):
            pass


@pytest.mark.parametrize(
    "kind", [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX, 1)]
)
def test_any_other_socket_is_refused_and_left_open(handed, kind):
    """One that does not listen, one of UDP, one of the file system: whoever opened it may want it back."""
    with pytest.raises(ConfigError, match=rf"descriptor {FREE_FD} \(web\): found another socket"):
        inherited(handed(socket.socket(*kind)), first_fd=FREE_FD)
    assert os.fstat(FREE_FD)
