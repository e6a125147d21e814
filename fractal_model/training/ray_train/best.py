"""A copy of the best checkpoint of a run, beside the last checkpoints.

Decided here: the best checkpoint has the lowest mean loss over the reports since the checkpoint
before it. Ray supports one rule, which keeps the last checkpoints, so the best one is copied to the
run's folder `best`. An object store cannot rename: a copy is complete if `best.json` names it.
"""

import json
import logging
import math
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import PurePosixPath
from typing import Any

import pyarrow
from pyarrow.fs import FileSelector, FileSystem, copy_files
from ray.train import Checkpoint, UserCallback

from fractal_model.common.errors import one_line
from fractal_model.training.job import REPORT_ADAPTER, Report, Stopped, TrainingJob

FOLDER, SCORE_FILE = "best", "best.json"


class KeepBest(UserCallback):
    """Keeps a copy of the best checkpoint of `run`, the run's folder or address.

    It copies in a thread, so that Ray's controller stays free for the workers. During a copy, the
    best later checkpoint is queued. Only the run's last report waits for the copy."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._losses: list[float] = []
        self._thread: ThreadPoolExecutor | None = None  # It is made after pickling.
        self._copy: Future[None] | None = None
        self._copied_loss = math.inf

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        report = REPORT_ADAPTER.validate_python(metrics[0])
        if isinstance(report, Report) and report.loss is not None:
            self._losses.append(report.loss)
        if checkpoint is not None and self._losses:
            self._request_copy(checkpoint, sum(self._losses) / len(self._losses))
            self._losses.clear()
        if self._copy is not None and _is_last(run_context, report):
            wait([self._copy])

    def _request_copy(self, checkpoint: Checkpoint, loss: float) -> None:
        is_queued = self._copy is not None and not (self._copy.running() or self._copy.done())
        if is_queued and self._copied_loss <= loss:
            return
        if self._copy is not None:
            self._copy.cancel()  # This cancels a queued copy only.
        self._thread = self._thread or ThreadPoolExecutor(max_workers=1)
        self._copy = self._thread.submit(self._copy_or_warn, checkpoint, loss)
        self._copied_loss = loss

    def _copy_or_warn(self, checkpoint: Checkpoint, loss: float) -> None:
        try:
            filesystem, folder = FileSystem.from_uri(self._run)
            keep_best(filesystem, folder, checkpoint, loss)
        except (OSError, pyarrow.ArrowException) as error:  # Training does not depend on it.
            logging.getLogger(__name__).warning(
                "the best checkpoint was not copied: %s", one_line(error)
            )


def _is_last(run_context: Any, report: Report | Stopped) -> bool:
    job = TrainingJob.model_validate_json(run_context.train_loop_config["job"])
    return isinstance(report, Stopped) or report.epoch >= job.recipe.epochs


def keep_best(filesystem: FileSystem, run: str, checkpoint: Checkpoint, loss: float) -> None:
    """Copy the checkpoint to the folder `best` of `run`, a path of `filesystem`, if its loss is the
    lowest so far. OSError, ArrowException: a storage does not answer."""
    if _best_loss(filesystem, run) <= loss:
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
    with filesystem.open_output_stream(f"{run}/{SCORE_FILE}") as stream:
        stream.write(json.dumps({"checkpoint": name, "loss": loss}).encode())
    for other in filesystem.get_file_info(FileSelector(f"{run}/{FOLDER}")):
        if other.base_name != name:
            filesystem.delete_dir(other.path)


def _best_loss(filesystem: FileSystem, run: str) -> float:
    """Loss of the best checkpoint so far, also from before a restart; infinity if there is none.
    OSError: it cannot be read."""
    try:
        with filesystem.open_input_stream(f"{run}/{SCORE_FILE}") as stream:
            return float(json.loads(stream.read())["loss"])
    except (FileNotFoundError, ValueError, KeyError):
        return math.inf
