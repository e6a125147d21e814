"""Ports that nobody listens on."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from fractal_model.config.services import PORTS


def free_ports(names: tuple[str, ...] = PORTS) -> dict[str, int]:
    """One for each name; all different."""
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.socket()) for name in names}
        for each in sockets.values():
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in sockets.items()}
