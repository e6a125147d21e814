"""The best checkpoint of a run, kept beside the last ones.

Decided here: the best is the one with the lowest mean loss of the reports since the checkpoint
before it. Ray keeps the last ones by itself and knows one rule only, so this is a copy, in the
run's folder `best`. An object store cannot rename: the copy is whole once `best.json` names it.
"""

from __future__ import annotations

import json
import logging
from pathlib import PurePosixPath
from typing import Any

import pyarrow.fs
from ray.train import Checkpoint, UserCallback

from fractal_model.training.job import Report

FOLDER, SCORE_FILE = "best", "best.json"


class KeepBest(UserCallback):
    """Runs in Ray's controller process; `run` is the run's folder or address."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._losses: list[float] = []

    def after_report(
        self, run_context: Any, metrics: list[Report], checkpoint: Checkpoint | None
    ) -> None:
        if "loss" in metrics[0]:
            self._losses.append(metrics[0]["loss"])
        if checkpoint is None or not self._losses:
            return
        loss = sum(self._losses) / len(self._losses)
        self._losses.clear()
        filesystem, folder = pyarrow.fs.FileSystem.from_uri(self._run)
        try:
            keep_best(filesystem, folder, checkpoint, loss)
        except OSError as error:  # training does not depend on it
            logging.getLogger(__name__).warning("the best checkpoint was not kept: %s", error)


def keep_best(
    filesystem: pyarrow.fs.FileSystem, run: str, checkpoint: Checkpoint, loss: float
) -> None:
    """Copy the checkpoint to the run's folder `best` where no better one is there."""
    before = _score(filesystem, run)
    if before is not None and before["loss"] <= loss:
        return
    name = PurePosixPath(checkpoint.path).name
    filesystem.create_dir(f"{run}/{FOLDER}/{name}")
    pyarrow.fs.copy_files(
        checkpoint.path,
        f"{run}/{FOLDER}/{name}",
        source_filesystem=checkpoint.filesystem,
        destination_filesystem=filesystem,
    )
    with filesystem.open_output_stream(f"{run}/{SCORE_FILE}") as stream:
        stream.write(json.dumps({"checkpoint": name, "loss": loss}).encode())
    for other in filesystem.get_file_info(pyarrow.fs.FileSelector(f"{run}/{FOLDER}")):
        if other.base_name != name:
            filesystem.delete_dir(other.path)


def _score(filesystem: pyarrow.fs.FileSystem, run: str) -> dict[str, Any] | None:
    """Of the best so far, also of before the run was stopped."""
    try:
        with filesystem.open_input_stream(f"{run}/{SCORE_FILE}") as stream:
            found = json.loads(stream.read())
        return {"checkpoint": found["checkpoint"], "loss": float(found["loss"])}
    except (OSError, ValueError, KeyError):
        return None
