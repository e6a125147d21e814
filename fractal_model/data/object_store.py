"""Access the files of a prepared data set in a folder or in an object store with a local cache.

Decided here: a remote file is fetched as a whole when it is first needed. One process fetches it
and the others wait. The data set's checksum is part of the cache's paths. If the data set in the
store is replaced, its files therefore never mix with cached files of the older one.
"""

from pathlib import Path

import fsspec
from filelock import FileLock

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import (
    CACHE_VARIABLE,
    atomic_file,
    cache_folder,
    require_regular_file,
)


def is_remote(place: str | Path) -> bool:
    """True if `place` is an address such as s3://bucket/imagenet64, not a folder."""
    return "://" in str(place)


class LocalStore:
    """A data set in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def __str__(self) -> str:
        return str(self.folder)

    def read(self, name: str) -> bytes:
        """Return the bytes of the data set's file `name`. Raises FileNotFoundError when it is
        missing, and OSError when it cannot be read."""
        require_regular_file(self.folder / name)
        return (self.folder / name).read_bytes()

    def local(self, name: str, size: int, version: str) -> Path:
        """Return the path of the data set's file `name` on this machine. A `RemoteStore` fetches
        the file unless it is in the cache. `version`, the data set's checksum, names the folder in
        the cache. Raises FileNotFoundError or OSError when the file is missing or unreadable,
        ValueError unless it has `size` bytes, and FractalError when it cannot be fetched."""
        path = self.folder / name
        _require_size(path, size)
        return path


class RemoteStore:
    """A data set in an object store, such as s3://bucket/imagenet64. Files are cached locally."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._cache = cache_folder()

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
        except Exception as error:  # Each object store raises its own exceptions.
            raise FractalError(
                f"{name} of {self} cannot be fetched to {self._cache} ({one_line(error)}): check "
                f"the access to the store and the cache's space and permissions (set "
                f"{CACHE_VARIABLE} to use another folder), and run again"
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
        # A cached listing would hide a data set that was written later.
        filesystem.invalidate_cache()
        return filesystem, root


Store = LocalStore | RemoteStore
"""Access to one prepared data set. File names are relative to the folder of the data set."""


def store_at(place: str | Path) -> Store:
    """Return the store of the data set in a folder or at an address."""
    return RemoteStore(str(place)) if is_remote(place) else LocalStore(Path(place))


def _require_size(path: Path, size: int) -> None:
    actual = path.stat().st_size
    if actual != size:
        raise ValueError(f"{path.name} has {actual} bytes, the manifest says {size}")
