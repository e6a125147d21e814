"""Upload of a checkpoint from a worker's scratch folder to the run's storage during training.

Decided here: a scratch folder has its machine and process in its name, so that the next worker on
the machine can remove the folders of killed processes.
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
    """Make an empty temporary folder for one checkpoint of this process; return its path."""
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{psutil.Process().pid}-"))


def remove_abandoned_scratch() -> None:
    """Remove the scratch folders on this machine that were made by processes which have ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        process = folder.name.removeprefix(_PREFIX).split("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


class Upload:
    """Function that copies one checkpoint to the run's storage, the marker file last, and then
    removes the scratch folder. Ray calls it in a thread. If an object store asks for another
    attempt, Ray calls it again. After any other error Ray ends all workers."""

    def __init__(self, folder: Path) -> None:
        self._scratch = folder.parent
        self._marker = (folder / MARKER).read_bytes()
        (folder / MARKER).unlink()
        self.done = threading.Event()
        """Is set when the upload is complete. If the upload fails, Ray ends the process instead."""

    def __call__(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        storage = ray.train.get_context().get_storage()
        stored = storage.persist_current_checkpoint(checkpoint, name)
        with stored.filesystem.open_output_stream(f"{stored.path}/{MARKER}") as stream:
            stream.write(self._marker)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self.done.set()
        return stored
