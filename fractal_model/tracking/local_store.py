"""The local MLflow store: a SQLite file that processes share, and that travels with its folder.

Decided here:

- The database is made whole, under a hidden name, by one process at a time: MLflow's own migration
  fails where two processes begin it, and what a full disk has cut short cannot be taken up again.
- MLflow writes absolute addresses of artifacts into the database. Where the folder was moved or
  copied since, they are set to where the artifacts lie now, so that a copy never reads, or writes
  to, the files of its original.
- What a database's driver raises is a condition of the machine: it is told on one line.
"""

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import unquote

import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from fractal_model.common.errors import FractalError, one_line, register_explanation
from fractal_model.common.files import atomic_file, remove_partial_files
from fractal_model.common.locks import hold_lock

STORE, ARTIFACTS = "mlflow", "artifacts"
"""Folders: of the store in the outputs, of the artifacts in the store."""
SCHEME = "sqlite:///"
WAIT_SECONDS, BUSY_SECONDS = 120.0, 20.0
"""Longest waits for another process: for one that makes the database (10 s on a busy laptop), and
for one that writes to it."""
STORE_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error)
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_ROOT = re.compile(rf"(file://)?(/.*/{STORE}/{ARTIFACTS})(?=/|$)")
_WAYS_OUT = {
    "full": "free some space",
    "disk I/O": "free some space, or mend the disk",
    "locked": "wait for the process that holds it, or end that",
    "readonly": "make the file and its folder writable",
    "unable to open": "make the file and its folder readable and writable",
    "malformed": "restore it from a copy",
    "not a database": "restore it from a copy",
}
"""By words of the driver's message, which a server passes on too."""


def local_database(outputs: Path) -> Path:
    """The file of the store that is used without a server."""
    return outputs / STORE / "mlflow.db"


def local_artifacts(outputs: Path) -> Path:
    """The folder of that store's artifacts."""
    return outputs / STORE / ARTIFACTS


def prepare_local_store(outputs: Path) -> Path:
    """The database of the outputs, made where there is none, with the addresses of artifacts that
    lie in these outputs. FractalError: it cannot be made, read or written."""
    file = local_database(outputs)
    prepare_database(file, local_artifacts(outputs))
    return file


def prepare_database(file: Path, artifacts: Path | None = None) -> None:
    """Make a database of MLflow where there is none; where `artifacts` is given, all artifacts of
    the store lie there. FractalError: it cannot be made, read or written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # MLflow logs the traceback of each error that it raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with _explain_errors(file), _wait_for_turn(file):
        if not file.exists() or file.stat().st_size == 0:
            remove_partial_files(file.parent)
            # A new name each time: MLflow keeps connections to one that failed.
            with atomic_file(file, unique=True) as partial:
                _client(partial).search_experiments(max_results=1)
        # A file that is no database is told at once; MLflow would try to open it for a minute.
        with closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as database, database:
            database.execute("SELECT count(*) FROM sqlite_master")
            if artifacts is not None:
                _follow_artifacts(database, artifacts)


def _client(file: Path) -> mlflow.MlflowClient:
    address = f"{SCHEME}{file}"
    return mlflow.MlflowClient(tracking_uri=address, registry_uri=address)


def _wait_for_turn(file: Path) -> AbstractContextManager[None]:
    """One process at a time; where nothing can be written, there is nothing to wait for."""
    if not os.access(file.parent, os.W_OK):
        return nullcontext()
    return hold_lock(file.with_suffix(".lock"), wait_seconds=WAIT_SECONDS)


def _follow_artifacts(database: sqlite3.Connection, artifacts: Path) -> None:
    database.create_function(
        "current_address", 1, lambda address: _current_address(address, artifacts)
    )
    for table, column in _ADDRESSES:
        stale = f"WHERE {column} IS NOT current_address({column})"
        # Asked first: an update locks the database, and fails where it cannot be written.
        if database.execute(f"SELECT 1 FROM {table} {stale} LIMIT 1").fetchone():
            database.execute(f"UPDATE {table} SET {column} = current_address({column}) {stale}")


def _current_address(address: str | None, artifacts: Path) -> str | None:
    """The address of the same artifact below `artifacts`; any other address as it is."""
    match = _ROOT.match(address or "")
    if address is None or match is None:
        return address
    is_url, root = match[1] is not None, match[2]
    before = Path(unquote(root) if is_url else root)
    if before == artifacts or (before.exists() and _stays(before, artifacts)):
        return address
    return (artifacts.as_uri() if is_url else str(artifacts)) + address[match.end() :]


def _stays(before: Path, artifacts: Path) -> bool:
    """True if artifacts lie at their old place alone, or both names are of one folder."""
    return not artifacts.exists() or before.samefile(artifacts)


@contextmanager
def _explain_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except STORE_ERRORS as error:
        raise FractalError(describe_store_error(error, f"{SCHEME}{file}")) from error


def describe_store_error(error: BaseException, uri: str) -> str:
    """What is wrong with a store, and the way out, on one line."""
    reason = store_reason(error)
    ways = [way for words, way in _WAYS_OUT.items() if words in reason]
    return (
        f"the MLflow store {uri} does not do its work ({reason}): {(ways or ['mend that'])[0]} and "
        f"run the same command again, what was complete is kept"
    )


def is_absence(error: BaseException) -> bool:
    """True if the store answers that it has no such thing; else it does not do its work."""
    # An unknown alias is an invalid parameter for it; nonsense like models:/ has its text alone.
    absent = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
    is_nonsense = "Not a proper models:/ URI" in str(error)
    return isinstance(error, OSError) or getattr(error, "error_code", "") in absent or is_nonsense


def store_reason(error: BaseException) -> str:
    """The words of the database's driver, without what SQLAlchemy puts before and after them."""
    text = one_line(error).partition(" [SQL: ")[0].partition(" (Background on")[0]
    return re.sub(r"^.*?\((\w+\.)+\w+\) ", "", text)


def _explanation(error: BaseException) -> str | None:
    """None where the store does its work: what was asked of it is wrong, by a fault of ours."""
    return None if is_absence(error) else describe_store_error(error, mlflow.get_tracking_uri())


for _family in STORE_ERRORS:
    register_explanation(_family, _explanation)
