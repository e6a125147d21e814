"""The local MLflow store: a SQLite file that several processes use, in a folder that can be moved.

Decided here:

- Only one process creates the database. It does so in a temporary folder, and then copies all
  tables to the final file in one transaction. MLflow itself fails if two processes create the
  database at once, and after a full disk it cannot complete an unfinished database.
- MLflow stores absolute paths of artifacts in the database. After the folder was moved or copied,
  these paths are changed to the new folder, so that a copy never uses the original's files.
- DVC runs queued experiments in copies of the project, which it deletes. A copy uses the project's
  store, so that models and runs are kept.
- An error of the database driver, such as a full disk, is no bug: it is reported on one line.
"""

import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import unquote

import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from fractal_model.common.errors import FractalError, one_line, register_explanation
from fractal_model.common.locks import hold_lock

STORE, ARTIFACTS = "mlflow", "artifacts"
"""Name of the store's folder in the outputs, and of the artifacts' folder in the store."""
SCHEME = "sqlite:///"
WAIT_SECONDS, BUSY_SECONDS = 120.0, 20.0
"""Longest waits, in seconds: for another process that creates the database, which takes 10 s on a
busy laptop, and for another process that writes to it."""
STORE_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error)
# Tables and columns of MLflow's database that hold absolute addresses of artifacts
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_EXPERIMENT_COPY = re.compile(
    r"(?P<project>.*?(?P<inner>(/[^/]+)*))/\.dvc/tmp/exps/(standalone/)?[^/]+(?P=inner)(?=/|$)"
)
"""The copy in which DVC runs an experiment. It is a copy of the git repository, so a project that
is an `inner` folder of the repository is one in the copy, too."""
_ROOT = re.compile(rf"(file://)?(/.*/{STORE}/{ARTIFACTS})(?=/|$)")
_WAYS_OUT = {
    "full": "free some space",
    "disk I/O": "free some space, or repair the disk",
    "locked": "wait for the process that holds it, or end that process",
    "readonly": "make the file and its folder writable",
    "unable to open": "make the file and its folder readable and writable",
    "malformed": "restore it from a copy",
    "not a database": "restore it from a copy",
    "space left": "free some space",
    "Errno": "make its folder writable, or choose another file",
    "expected a file": "choose another file",
}
"""What the user can do, by words in the error message of a store. The message comes from the
database driver, also if a server sends it."""


def local_database(outputs: Path) -> Path:
    """Path of the SQLite file that MLflow uses without a server."""
    return _store_folder(outputs) / "mlflow.db"


def local_artifacts(outputs: Path) -> Path:
    """Path of the folder with the artifacts of the local store."""
    return _store_folder(outputs) / ARTIFACTS


def _store_folder(outputs: Path) -> Path:
    return Path(_EXPERIMENT_COPY.sub(r"\g<project>", str(outputs))) / STORE


def prepare_local_store(outputs: Path) -> Path:
    """Return the path of the local store's database in the folder `outputs`. If it is missing,
    create it; if the folder was moved, correct the artifact paths in it. FractalError: the database
    cannot be created, read or written."""
    file = local_database(outputs)
    prepare_database(file, local_artifacts(outputs))
    return file


def prepare_database(file: Path, artifacts: Path | None = None) -> None:
    """Create MLflow's database in `file` if that file is missing or empty. If the folder
    `artifacts` is given, change all artifact paths in the database to it. FractalError: the
    database cannot be created, read or written, or `file` is a folder, a device or a pipe."""
    with _explain_errors(file):
        # SQLite would write over a device.
        if file.exists() and not file.is_file():
            raise OSError("it is a folder, a device or a pipe, expected a file")
        file.parent.mkdir(parents=True, exist_ok=True)
    # MLflow would log the traceback of each error that it raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with (
        _explain_errors(file),
        _wait_for_turn(file.resolve()),
        closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as database,
        database,
    ):
        # This fails at once for a file that is no database; MLflow would retry for a minute.
        if not database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall():
            _create_tables(database)
        if artifacts is not None:
            _update_artifact_paths(database, artifacts)


def _create_tables(database: sqlite3.Connection) -> None:
    # The temporary name is new each time: MLflow keeps connections to a failed database.
    with tempfile.TemporaryDirectory(prefix="fractal-") as folder:
        file = Path(folder) / "new.db"
        uri = f"{SCHEME}{file}"
        mlflow.MlflowClient(uri, registry_uri=uri).search_experiments(max_results=1)
        with closing(sqlite3.connect(file)) as complete:
            complete.backup(database)


def _wait_for_turn(file: Path) -> AbstractContextManager[None]:
    """Hold a lock within the `with` block, so that one process at a time creates the database
    `file`. In a read-only folder no process can create it, so no lock is needed."""
    if not os.access(file.parent, os.W_OK):
        return nullcontext()
    return hold_lock(file.with_suffix(".lock"), wait_seconds=WAIT_SECONDS)


def _update_artifact_paths(database: sqlite3.Connection, artifacts: Path) -> None:
    database.create_function(
        "current_address", 1, lambda address: _current_address(address, artifacts)
    )
    for table, column in _ADDRESSES:
        stale = f"WHERE {column} IS NOT current_address({column})"
        # An update fails on a database that is read-only, so it runs only if it changes something.
        if database.execute(f"SELECT 1 FROM {table} {stale} LIMIT 1").fetchone():
            database.execute(f"UPDATE {table} SET {column} = current_address({column}) {stale}")


def _current_address(address: str | None, artifacts: Path) -> str | None:
    """Return an artifact's address (a path or a file URL) with the folder `artifacts` in place of
    the old artifacts folder. The address stays the same if it is not in a local store, or if the
    old folder exists but `artifacts` does not."""
    match = _ROOT.match(address or "")
    if address is None or match is None:
        return address
    is_url, root = match[1] is not None, match[2]
    old = Path(unquote(root) if is_url else root)
    if old == artifacts or (old.exists() and (not artifacts.exists() or old.samefile(artifacts))):
        return address
    return (artifacts.as_uri() if is_url else str(artifacts)) + address[match.end() :]


@contextmanager
def _explain_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (*STORE_ERRORS, OSError) as error:
        raise FractalError(describe_store_error(error, f"{SCHEME}{file}")) from error


def describe_store_error(error: BaseException, uri: str) -> str:
    """Return an error text of one line: why the store `uri` does not work, and what to do."""
    reason = store_reason(error)
    ways = [way for words, way in _WAYS_OUT.items() if words in reason]
    return (
        f"the MLflow store {uri} does not work ({reason}): {(ways or ['repair it'])[0]} and run "
        f"the same command again, complete results are kept"
    )


def is_absence(error: BaseException) -> bool:
    """True if the error means that the store does not have the requested object; False if the store
    itself fails."""
    # MLflow reports an unknown alias as an invalid parameter. An invalid address like models:/ can
    # only be recognised by the error's text.
    absent = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
    is_bad_uri = "Not a proper models:/ URI" in str(error)
    return isinstance(error, OSError) or getattr(error, "error_code", "") in absent or is_bad_uri


def store_reason(error: BaseException) -> str:
    """Message of the database's driver, without the text that SQLAlchemy adds around it."""
    text = one_line(error).partition(" [SQL: ")[0].partition(" (Background on")[0]
    return re.sub(r"^.*?\((\w+\.)+\w+\) ", "", text)


def _explanation(error: BaseException) -> str | None:
    """Return the error text for a store that fails. None: the store works but does not have the
    requested object, so the error is a bug of this package and its traceback is shown."""
    return None if is_absence(error) else describe_store_error(error, mlflow.get_tracking_uri())


for _family in STORE_ERRORS:
    register_explanation(_family, _explanation)
