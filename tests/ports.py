"""Ports for servers that bind them some seconds after they were chosen."""

import random
import socket
from contextlib import suppress

# Below those that the kernel gives to every connection that goes out (32768 on).
_PORTS = range(20000, 32000)


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free, and hardly chosen by anybody else meanwhile."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
