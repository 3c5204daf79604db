"""Ports on the loopback address that nobody uses now."""

import contextlib
import random
import socket

HOST = "127.0.0.1"

# Below the ports that Linux (32768 up) and macOS (49152 up) lend to outgoing connections: a client
# that keeps trying to reach a stopped server on such a port may be lent that very port, connects to
# itself, and the server can never come back.
_FIRST, _LAST = 20000, 32000


def free_port() -> int:
    """A port that was free a moment ago; whoever uses it must be ready to find it taken."""
    for _ in range(200):
        port = random.randint(_FIRST, _LAST)
        if is_free(port):
            return port
    raise OSError(f"found no free port between {_FIRST} and {_LAST}")


def is_free(port: int) -> bool:
    """Whether nothing on this machine listens on the port."""
    # The wildcard address as well: a server there would answer on the loopback address too.
    for address in (HOST, ""):
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True
