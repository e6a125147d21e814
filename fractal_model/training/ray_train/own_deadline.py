"""A worker's own limit on the time without progress, after which it ends its process.

Decided here: ranks that wait for another one notice that it hangs. Nobody notices if all ranks hang
at once, for example on a file system that does not answer, or if there is only one rank. So every
worker has a clock of its own. It is set later than the limit of ranks that wait, because their
error says more.
"""

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager

_FACTOR = 1.5


class OwnDeadline:
    """Ends this process if `stall_seconds` and half as long again pass without `renew`. What its
    threads were doing then stands in Ray's log of the worker."""

    def __init__(self, stall_seconds: float) -> None:
        self._seconds = _FACTOR * stall_seconds

    def renew(self) -> None:
        """Start the time anew."""
        faulthandler.dump_traceback_later(self._seconds, exit=True)

    def lift(self) -> None:
        """Wait without a limit, until the next `renew`."""
        faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Start the time; at the end there is no limit any more."""
        self.renew()
        try:
            yield
        finally:
            self.lift()
