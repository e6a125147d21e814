"""Where a prepared data set lies: a folder, or an object store behind a cache of whole files.

Decided here: a remote file is fetched once, when it is first asked for, by whichever process asks
first; the others wait for it. The cache is keyed by the data set's checksum, so that a data set
that is replaced in the store never mixes with what was fetched before.
"""

import os
from pathlib import Path

import fsspec
from filelock import FileLock

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import atomic_file

CACHE_VARIABLE = "FRACTAL_CACHE"
"""Environment variable: where files of remote data sets are kept."""


def is_remote(place: str | Path) -> bool:
    return "://" in str(place)


class LocalStore:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def __str__(self) -> str:
        return str(self.folder)

    def read(self, name: str) -> bytes:
        """The whole file, straight from its place. Raises FileNotFoundError, OSError."""
        return (self.folder / name).read_bytes()

    def local(self, name: str, size: int, version: str) -> Path:
        """The file's path on this machine.

        Raises FileNotFoundError, OSError, ValueError when it has not `size` bytes, and
        FractalError when it cannot be fetched.
        """
        path = self.folder / name
        _require_size(path, size)
        return path


class RemoteStore:
    """A folder of an object store, such as s3://bucket/imagenet64."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        folder = os.environ.get(CACHE_VARIABLE)
        self._cache = Path(folder) if folder else Path.home() / ".cache" / "fractal-model"

    def __str__(self) -> str:
        return self.url

    def read(self, name: str) -> bytes:
        filesystem, root = self._filesystem()
        return filesystem.cat_file(f"{root}/{name}")

    def local(self, name: str, size: int, version: str) -> Path:
        path = self._cache / version[:16] / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if not path.is_file() or path.stat().st_size != size:
                    self._fetch(name, path)
        except (FileNotFoundError, FractalError):
            raise
        except Exception as error:  # each object store has exceptions of its own
            raise FractalError(
                f"{name} of {self} cannot be fetched to {self._cache} ({one_line(error)}): check "
                f"the access to the store and the cache's space and permissions ({CACHE_VARIABLE} "
                f"moves it), and run again"
            ) from error
        _require_size(path, size)
        return path

    def _fetch(self, name: str, path: Path) -> None:
        filesystem, root = self._filesystem()
        with atomic_file(path) as partial:
            filesystem.get_file(f"{root}/{name}", str(partial))

    def _filesystem(self) -> tuple[fsspec.AbstractFileSystem, str]:
        try:
            filesystem, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise FractalError(
                f"{self.url} cannot be opened ({one_line(error)}): give a folder, or an address "
                f"that fsspec knows, such as s3://bucket/imagenet64"
            ) from error
        # A listing kept from before would hide a data set that was written since.
        filesystem.invalidate_cache()
        return filesystem, root


Store = LocalStore | RemoteStore
"""The files of one prepared data set, by their names relative to it."""


def store_at(place: str | Path) -> Store:
    return RemoteStore(str(place)) if is_remote(place) else LocalStore(Path(place))


def _require_size(path: Path, size: int) -> None:
    found = path.stat().st_size
    if found != size:
        raise ValueError(f"{path.name} has {found} bytes, the manifest says {size}")
