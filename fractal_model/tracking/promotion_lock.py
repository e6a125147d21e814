"""A lock across all machines of a registry: one process at a time changes a champion.

MLflow sets an alias without comparing its old value, so two processes must not read the champion,
decide and set the alias at the same time. A file lock works on one machine only, and a lock of
Prefect only if all machines use one Prefect server. The lock is therefore an entry of the registry:
a registered model without versions, which exists only while a champion changes.

Each attempt creates an entry under a name that is never used again, and then lists the entries of
all processes. If there is no other entry, the process holds the lock. Otherwise the process deletes
its own entry and tries again after a random pause. Why this is safe:

- Two processes never hold the lock at once: a process lists the entries after its own is committed,
  so the process that commits second sees the first one's entry. (Reads must not go to a replica of
  the registry's database: a replica that lags behind may hide an entry.)
- The entry of a dead process blocks others for `LONGEST_SECONDS` by the registry's clock. Then the
  next process deletes it. No other entry has the same name, so none is deleted by mistake.
- A process that is paused for longer than that loses its entry. It notices this, because it calls
  `require` before it writes.

Earlier versions of this package left a registered model `turns-of-promotion` behind. Its name has
the prefix of the entries, so it is deleted like the entry of a process that died.
"""

import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from uuid import uuid4

import mlflow
from mlflow.exceptions import MlflowException

from fractal_model.common.errors import FractalError, one_line

PREFIX = "turns-of-promotion"
LONGEST_SECONDS = 60.0
"""Longest time, in seconds, that a process may hold the lock. After it the process counts as
dead."""
WAIT_SECONDS = 300.0
"""Longest time, in seconds, to wait for the lock while other processes hold it."""
PAUSE_SECONDS = 0.2
"""The pause after attempt number n is random, from 0 to n times this number of seconds."""
# Error codes of MLflow after which the process tries again
_PASSING = (
    *("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "BAD_REQUEST"),  # Many write at the same moment.
    "RESOURCE_ALREADY_EXISTS",  # The answer to the request was lost, and MLflow sent it again.
    "RESOURCE_DOES_NOT_EXIST",  # Another process has deleted the dead process's entry.
)


@dataclass(frozen=True)
class PromotionLock:
    """The promotion lock, held by this process, which may therefore change a champion."""

    entry: str
    """Name of the registered model that stands for the lock."""

    def require(self) -> None:
        """Raise FractalError if another process deleted this lock, because it took this process for
        dead."""
        if not mlflow.MlflowClient().search_registered_models(f"name = '{self.entry}'"):
            raise FractalError(
                f"this process took more than {LONGEST_SECONDS:.0f} s to change the champion, so "
                f"another process removed its lock: run the same command again"
            )


@contextmanager
def hold_promotion_lock(*, wait_seconds: float = WAIT_SECONDS) -> Iterator[PromotionLock]:
    """Wait for the promotion lock and hold it within the block. FractalError: other processes held
    the lock for `wait_seconds`, or the registry does not answer."""
    deadline, pause = time.monotonic() + wait_seconds, 0.0
    while True:
        lock = PromotionLock(f"{PREFIX}-{uuid4().hex}")
        try:
            obstacle = _take(lock)
            if not obstacle:
                yield lock
                return
        finally:
            # If it cannot be deleted now, another process deletes it after `LONGEST_SECONDS`.
            with suppress(MlflowException):
                mlflow.MlflowClient().delete_registered_model(lock.entry)
        if time.monotonic() > deadline:
            raise FractalError(
                f"waited {wait_seconds:.0f} s to change the champion ({obstacle}): nothing was "
                f"changed, run the same command again"
            )
        pause += PAUSE_SECONDS
        time.sleep(random.uniform(0, pause))


def _take(lock: PromotionLock) -> str:
    """Create the entry of `lock`, and delete the entries of dead processes. Return "" if this
    process now holds the lock, otherwise the reason why not."""
    client = mlflow.MlflowClient()
    holder = f"process {os.getpid()} of {socket.gethostname()} is changing a champion"
    try:
        own = client.create_registered_model(lock.entry, description=holder)
        for other in client.search_registered_models(f"name LIKE '{PREFIX}%'"):
            age = own.creation_timestamp - other.last_updated_timestamp
            if other.name != lock.entry and age <= 1000 * LONGEST_SECONDS:
                return other.description or other.name
            if other.name != lock.entry:
                client.delete_registered_model(other.name)
    except MlflowException as error:
        if error.error_code in _PASSING:
            return one_line(error)
        raise FractalError(
            f"the registry {mlflow.get_tracking_uri()} did not create a lock for the champion "
            f"({one_line(error)}): nothing was changed, run again"
        ) from error
    return ""
