"""The validation points of a run, in its storage. A folder is named by the number of images seen.

    validation/000000005280/STARTED        the number of attempts to measure the point
    validation/000000005280/samples.png    one grid for each set of weights
    validation/000000005280/measured.json  the point, if the workers have measured it
    validation/000000005280/point.json     written last: the point is complete
    validation/GIVEN_UP                    position from which the run is not validated any more

Decided here: if a point was started and was not measured, its process was killed or took too long.
After two such points in a row, or two such attempts of the workers at one point, the run is not
validated any more until it is started again. The point at which this happens has the reason.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Self

from pyarrow.fs import FileSelector, FileSystem, FileType
from pydantic import ValidationError

from fractal_model.training.job import ValidationPoint

FOLDER, GIVEN_UP = "validation", "GIVEN_UP"
STARTED, MEASURED, POINT = "STARTED", "measured.json", "point.json"
MOST_UNFINISHED = 2
"""Number of unfinished points in a row, or of attempts at one point, after which a run is not
validated any more."""
POLL_SECONDS = 1.0
OnPoint = Callable[[ValidationPoint, dict[str, bytes]], None]
"""Function that receives a point and its sample grids: PNG files as bytes, by file name."""


class ValidationPoints:
    """The validation points of one run. `run` is the path of the run's folder in `filesystem`."""

    def __init__(self, filesystem: FileSystem, run: str) -> None:
        self._filesystem = filesystem
        self._folder = f"{run}/{FOLDER}"

    @classmethod
    def of_run(cls, storage: str, name: str) -> Self:
        """The points of the run whose folder is `name` in `storage`, a folder or an address."""
        return cls(*FileSystem.from_uri(f"{storage}/{name}"))

    def start(self, position: int) -> None:
        """Record that measuring the weights at this position begins. OSError: the storage fails."""
        attempts = self.attempts(position) + 1
        self._filesystem.create_dir(self._of(position))
        self._write(position, STARTED, str(attempts).encode())

    def attempts(self, position: int) -> int:
        """Number of times that measuring at a position began. OSError: the storage fails."""
        content = self._read(f"{position:012d}/{STARTED}")
        return int(content) if content and content.isdigit() else 0

    def store_measured(self, point: ValidationPoint, grids: dict[str, bytes]) -> None:
        """Write a point that the workers have measured, with its grids. It is complete when
        `finish` is called. OSError: the storage fails."""
        self._write_all(point, grids, MEASURED)

    def finish(self, point: ValidationPoint, grids: dict[str, bytes]) -> None:
        """Write the PNG files `grids`, by name, then the point. OSError: the storage fails."""
        self._write_all(point, grids, POINT)

    def give_up(self, place: ValidationPoint, reason: str) -> None:
        """Write that the run is not validated any more from a position on, and the reason to the
        point there. OSError: the storage fails."""
        self._filesystem.create_dir(self._of(place.position))
        with self._filesystem.open_output_stream(f"{self._folder}/{GIVEN_UP}") as stream:
            stream.write(str(place.position).encode())
        self.finish(place.model_copy(update={"failure": reason}), {})

    def is_given_up(self) -> bool:
        """True if the run is not validated any more. OSError: the storage fails."""
        return self._read(GIVEN_UP) is not None

    def read(self, position: int) -> ValidationPoint | None:
        """Return the point at a position; None if it is incomplete. OSError: the storage fails."""
        return self._read_point(f"{position:012d}/{POINT}")

    def read_measured(self, position: int) -> ValidationPoint | None:
        """Return the point that the workers have measured at a position, None if there is none.
        OSError: the storage fails."""
        return self._read_point(f"{position:012d}/{MEASURED}")

    def read_grid(self, position: int, name: str) -> bytes:
        """Return the PNG file `name` of the point at a position. OSError: it cannot be read."""
        with self._filesystem.open_input_stream(f"{self._of(position)}/{name}") as stream:
            return bytes(stream.read())

    def forget_unfinished(self) -> None:
        """Remove the points of an earlier process that were not measured, also the one at which it
        gave up. OSError: the storage fails."""
        given_up = self._read(GIVEN_UP)
        for position in self.positions():
            if not self._is_measured(position) or str(position).encode() == given_up:
                self._filesystem.delete_dir(self._of(position))
        if given_up is not None:
            self._filesystem.delete_file(f"{self._folder}/{GIVEN_UP}")

    def positions(self) -> list[int]:
        """Sorted positions of all points, also incomplete ones. OSError: the storage fails."""
        folders = self._filesystem.get_file_info(FileSelector(self._folder, allow_not_found=True))
        names = [PurePosixPath(each.path).name for each in folders]
        return sorted(int(name) for name in names if name.isdecimal())

    def unfinished(self) -> list[int]:
        """Positions of the points that were started after the last measured one, newest first."""
        behind: list[int] = []
        for position in reversed(self.positions()):
            if self._is_measured(position):
                break
            behind.append(position)
        return behind

    def _is_measured(self, position: int) -> bool:
        files = [f"{self._of(position)}/{name}" for name in (POINT, MEASURED)]
        infos = self._filesystem.get_file_info(files)
        return any(info.type == FileType.File for info in infos)

    def _read_point(self, file: str) -> ValidationPoint | None:
        content = self._read(file)
        try:
            return None if content is None else ValidationPoint.model_validate_json(content)
        except ValidationError:
            return None

    def _read(self, file: str) -> bytes | None:
        """Return the content of a file of the points' folder; None if there is none."""
        try:
            with self._filesystem.open_input_stream(f"{self._folder}/{file}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def _write_all(self, point: ValidationPoint, grids: dict[str, bytes], name: str) -> None:
        for grid, png in grids.items():
            self._write(point.position, grid, png)
        self._write(point.position, name, point.model_dump_json().encode())

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
