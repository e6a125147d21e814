"""A copy of the best checkpoint of a run, beside the last checkpoints.

Decided here: the best checkpoint has the fewest held-out bits per dimension. Ray may remove it
before the run ends, so it is copied to the folder `best` of the run. An object store cannot rename,
so a copy counts as complete when `best.json` contains its name.
"""

import json
import math
from pathlib import PurePosixPath

from pyarrow.fs import FileSelector, FileSystem, copy_files
from ray.train import Checkpoint

from fractal_model.metrics.names import NLL

FOLDER, SCORE_FILE = "best", "best.json"


def keep_best(filesystem: FileSystem, run: str, checkpoint: Checkpoint, bits: float) -> None:
    """Copy a checkpoint with `bits` held-out bits per dimension to the folder `best` of a run,
    unless the checkpoint in that folder has as few bits or fewer.

    `run`: path of the run's folder in `filesystem`. OSError, ArrowException: the storage fails.
    """
    _, best = best_checkpoint(filesystem, run)
    if not bits < best:  # NaN is never better.
        return
    name = PurePosixPath(checkpoint.path).name
    filesystem.create_dir(f"{run}/{FOLDER}/{name}")
    copy_files(
        checkpoint.path,
        f"{run}/{FOLDER}/{name}",
        source_filesystem=checkpoint.filesystem,
        destination_filesystem=filesystem,
        use_threads=False,  # Threads may hang in an upload: apache/arrow issue 32372.
    )
    with filesystem.open_output_stream(f"{run}/{SCORE_FILE}.new") as stream:
        stream.write(json.dumps({"checkpoint": name, NLL: bits}).encode())
    filesystem.move(f"{run}/{SCORE_FILE}.new", f"{run}/{SCORE_FILE}")
    for other in filesystem.get_file_info(FileSelector(f"{run}/{FOLDER}")):
        if other.base_name != name:
            filesystem.delete_dir(other.path)


def best_checkpoint(filesystem: FileSystem, run: str) -> tuple[str | None, float]:
    """Return the best checkpoint's path below `run` and its held-out bits per dimension, or (None,
    infinity) if there is none. OSError: the storage does not answer."""
    try:
        with filesystem.open_input_stream(f"{run}/{SCORE_FILE}") as stream:
            content = json.loads(stream.read())
        return f"{FOLDER}/{content['checkpoint']}", float(content[NLL])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None, math.inf
