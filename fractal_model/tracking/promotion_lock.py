"""One at a time may change which version is the champion, over all machines of a registry.

MLflow sets an alias without a condition on what it was, so reading the champion, deciding and
setting it must not mix with another's. What everyone who changes aliases shares is the registry
itself: a file lock ends at the machine, and each may have another Prefect server. The registry
does one thing atomically, it numbers versions, also in use by many, and never gives a number
twice. So a turn is a version of the registered model `turns-of-promotion`, and the lowest number
that is there has its turn: a smaller one cannot come later. A turn is given back by deleting it.

A process that died leaves its turn behind: the others delete it once nothing was heard of it for
longer than a turn may last. Those who wait are heard of as they write down that they wait; the
times are all of the registry's clock, so the clocks of the machines do not matter. A process that
was only stopped so long must not go on as if it had its turn: it asks `Turn.require` before it
writes.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from fractal_model.common.errors import FractalError, one_line

NAME = "turns-of-promotion"
_DESCRIPTION = "Not a model. Its versions are turns: who may change a champion, one at a time."
_NO_FILES = "turn://promotion/none"
"""MLflow wants to know where a version's files are."""
LONGEST_SECONDS = 60.0
"""A turn takes a few requests: what lasts longer belongs to a process that is gone."""
WAIT_SECONDS = 300.0
POLL_SECONDS = 0.2
_CROWDED = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "BAD_REQUEST")
"""What MLflow says when too many wanted to write to its database at the same moment."""


@dataclass(frozen=True)
class Turn:
    """The right to change a champion now."""

    number: int

    def require(self) -> None:
        """FractalError: it was taken for a dead process's, as it lasted so long."""
        if self.number not in {int(ticket.version) for ticket in _tickets()}:
            raise _too_late()


@contextmanager
def own_turn(*, wait_seconds: float = WAIT_SECONDS) -> Iterator[Turn]:
    """Wait for the turn of this process, and have it within the block.

    FractalError: others had theirs all the time, or the registry does not answer.
    """
    deadline = time.monotonic() + wait_seconds
    ticket = _draw(deadline)
    try:
        while (first := _first_before(ticket)) is not None:
            if time.monotonic() > deadline:
                raise FractalError(
                    f"{first.description} has been changing the champion for more than "
                    f"{wait_seconds:.0f} s: wait for it, then run again"
                )
            time.sleep(POLL_SECONDS)
        yield Turn(int(ticket.version))
    finally:
        _discard(ticket)


def _draw(deadline: float) -> ModelVersion:
    """A ticket. Who draws at the same moment as many others may be refused, and draws again."""
    holder = f"process {os.getpid()} of {socket.gethostname()}"
    while True:
        try:
            _make_sure_of_the_model()
            return mlflow.MlflowClient().create_model_version(NAME, _NO_FILES, description=holder)
        except MlflowException as error:
            if time.monotonic() > deadline or error.error_code not in _CROWDED:
                raise FractalError(
                    f"the registry {mlflow.get_tracking_uri()} gives no turn to change the "
                    f"champion ({one_line(error)}): nothing was changed, run again"
                ) from error
            time.sleep(POLL_SECONDS)


def _make_sure_of_the_model() -> None:
    client = mlflow.MlflowClient()
    if client.search_registered_models(f"name = '{NAME}'"):
        return
    try:
        client.create_registered_model(NAME, description=_DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # by another, since
            raise


def _first_before(ticket: ModelVersion) -> ModelVersion | None:
    """Whose turn it is before `ticket`, leaving out the dead; None where it is its own."""
    now = _now(ticket)
    for other in sorted(_tickets(), key=lambda other: int(other.version)):
        if int(other.version) >= int(ticket.version):
            break
        if now - other.last_updated_timestamp <= 1000 * LONGEST_SECONDS:
            return other
        _discard(other)
    return None


def _now(ticket: ModelVersion) -> int:
    """Milliseconds of the registry's clock, at which `ticket` was heard of."""
    try:
        heard = mlflow.MlflowClient().update_model_version(
            NAME, ticket.version, description=ticket.description
        )
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise _too_late() from error
        raise
    return heard.last_updated_timestamp


def _tickets() -> list[ModelVersion]:
    return list(mlflow.MlflowClient().search_model_versions(f"name = '{NAME}'"))


def _discard(ticket: ModelVersion) -> None:
    """A ticket that cannot be given back is taken for a dead process's later on."""
    with suppress(MlflowException):
        mlflow.MlflowClient().delete_model_version(NAME, ticket.version)


def _too_late() -> FractalError:
    return FractalError(
        f"this process was not heard of for {LONGEST_SECONDS:.0f} s while it changed the champion, "
        f"and others have gone on: nothing more was changed, run again"
    )
