"""The validation points of a run, in its storage. A folder is named by the number of images seen.

    validation/000000005280/STARTED      written when the measurement begins
    validation/000000005280/samples.png  one grid for each set of weights
    validation/000000005280/point.json   written last: the point is complete

Decided here: if a point was started and has no `point.json`, its process was killed or took too
long. After two such points in a row the run is not validated any more. So validation can delay a
run by at most twice its timeout.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath

from pyarrow.fs import FileSelector, FileSystem, FileType
from pydantic import ValidationError

from fractal_model.training.job import ValidationPoint

FOLDER, STARTED, POINT = "validation", "STARTED", "point.json"
MOST_UNFINISHED = 2
"""Number of unfinished points in a row after which a run is not validated any more."""
POLL_SECONDS = 1.0
OnPoint = Callable[[ValidationPoint, dict[str, bytes]], None]
"""Function that receives a point and its sample grids: PNG files as bytes, by file name."""


class ValidationPoints:
    """The validation points of one run. `run` is the path of the run's folder in `filesystem`."""

    def __init__(self, filesystem: FileSystem, run: str) -> None:
        self._filesystem = filesystem
        self._folder = f"{run}/{FOLDER}"

    def start(self, position: int) -> None:
        """Record that measuring the weights at this position begins. OSError: the storage fails."""
        self._filesystem.create_dir(self._of(position))
        self._write(position, STARTED, b"")

    def finish(self, point: ValidationPoint, grids: dict[str, bytes]) -> None:
        """Write the PNG files `grids`, by name, then the point. OSError: the storage fails."""
        for name, png in grids.items():
            self._write(point.position, name, png)
        self._write(point.position, POINT, point.model_dump_json().encode())

    def read(self, position: int) -> ValidationPoint | None:
        """Return the point at a position; None if it is incomplete. OSError: the storage fails."""
        try:
            with self._filesystem.open_input_stream(f"{self._of(position)}/{POINT}") as stream:
                return ValidationPoint.model_validate_json(stream.read())
        except (FileNotFoundError, ValidationError):
            return None

    def read_grid(self, position: int, name: str) -> bytes:
        """Return the PNG file `name` of the point at a position. OSError: it cannot be read."""
        with self._filesystem.open_input_stream(f"{self._of(position)}/{name}") as stream:
            return bytes(stream.read())

    def forget_unfinished(self) -> None:
        """Remove the incomplete points of an earlier process. OSError: the storage fails."""
        for position in self.positions():
            if not self._is_complete(position):
                self._filesystem.delete_dir(self._of(position))

    def positions(self) -> list[int]:
        """Sorted positions of all points, also incomplete ones. OSError: the storage fails."""
        folders = self._filesystem.get_file_info(FileSelector(self._folder, allow_not_found=True))
        names = [PurePosixPath(each.path).name for each in folders]
        return sorted(int(name) for name in names if name.isdecimal())

    def unfinished(self) -> list[int]:
        """Positions of the points that were started after the last complete one, newest first."""
        behind: list[int] = []
        for position in reversed(self.positions()):
            if self._is_complete(position):
                break
            behind.append(position)
        return behind

    def _is_complete(self, position: int) -> bool:
        info = self._filesystem.get_file_info(f"{self._of(position)}/{POINT}")
        return info.type == FileType.File

    def _of(self, position: int) -> str:
        return f"{self._folder}/{position:012d}"

    def _write(self, position: int, name: str, content: bytes) -> None:
        with self._filesystem.open_output_stream(f"{self._of(position)}/{name}") as stream:
            stream.write(content)


@contextmanager
def follow_points(points: ValidationPoints, on_point: OnPoint) -> Iterator[None]:
    """During the `with` block, call `on_point` in another thread with each complete point once,
    earlier ones included. The end of the block waits for the last calls and raises the first error
    of `on_point`."""
    done, seen = threading.Event(), set[int]()

    def follow() -> None:
        while not done.wait(POLL_SECONDS):
            hand_on()
        hand_on()

    def hand_on() -> None:
        positions: list[int] = []
        with suppress(OSError):  # A shared file system may work again at the next poll.
            positions = points.positions()
        for position in positions:
            with suppress(OSError):
                if position not in seen and (point := points.read(position)) is not None:
                    grids = {name: points.read_grid(position, name) for name in point.grids}
                    seen.add(position)
                    on_point(point, grids)

    with ThreadPoolExecutor(max_workers=1) as thread:
        following = thread.submit(follow)
        try:
            yield
        finally:
            done.set()
        following.result()
