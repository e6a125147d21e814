"""A checkpoint's way from a worker's scratch folder to the run's storage, while training goes on.

Decided here: a scratch folder is named by its machine and process, so that the next worker on the
machine removes those of killed processes.
"""

import shutil
import socket
import tempfile
import threading
from pathlib import Path

import psutil
import ray.train
from ray.train import Checkpoint

from fractal_model.checkpoints.checkpoint import MARKER

_PREFIX = f"fractal-checkpoint-{socket.gethostname()}-"


def new_scratch() -> Path:
    """Make an empty folder of this process, for one checkpoint."""
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{psutil.Process().pid}-"))


def remove_left_behind() -> None:
    """Remove the scratch folders of this machine's processes that have ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        process = folder.name.removeprefix(_PREFIX).split("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


class Upload:
    """Copies one checkpoint, its marker last, and removes the scratch folder that held it.

    Ray calls it in a thread, again if an object store says to try again; what it raises ends the
    group of workers.
    """

    def __init__(self, folder: Path) -> None:
        self._scratch = folder.parent
        self._marker = (folder / MARKER).read_bytes()
        (folder / MARKER).unlink()
        self.done = threading.Event()
        """Never set if the upload fails: Ray ends the process then."""

    def __call__(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        storage = ray.train.get_context().get_storage()
        stored = storage.persist_current_checkpoint(checkpoint, name)
        with stored.filesystem.open_output_stream(f"{stored.path}/{MARKER}") as stream:
            stream.write(self._marker)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self.done.set()
        return stored
