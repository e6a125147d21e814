"""Free ports of this machine."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from fractal_model.config.services import PORTS


def free_ports(names: tuple[str, ...] = PORTS) -> dict[str, int]:
    """A free port for each name; all are different."""
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.socket()) for name in names}
        for free in sockets.values():
            free.bind(("127.0.0.1", 0))
        return {name: free.getsockname()[1] for name, free in sockets.items()}
