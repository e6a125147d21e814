"""Where a source's images are: a folder, a table of pictures, or a data set of the hub."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from fractal_model.common.errors import FractalError
from fractal_model.common.files import cache_folder
from fractal_model.data.sources.listing import printable_name

HUB = "hub:"
"""Start of the name of a data set on the Hugging Face hub, such as hub:owner/flowers."""
TABLE_ENDINGS = (".csv", ".parquet")


class Place(NamedTuple):
    """A place that a source is registered from."""

    text: str
    """Absolute path of a folder or of a table of pictures, or `hub:` with a name or a path."""

    def __str__(self) -> str:
        return self.text

    @property
    def hub_name(self) -> str | None:
        """Name or local folder of a data set of the hub; None if the images are files here."""
        return self.text.removeprefix(HUB) if self.text.startswith(HUB) else None

    @property
    def root(self) -> Path:
        """Folder that the paths in the listing are relative to. For the hub it is a folder of the
        cache, which `list_hub` fills."""
        if self.hub_name is not None:
            digest = hashlib.sha256(os.fsencode(self.hub_name)).hexdigest()[:12]
            return cache_folder() / "hub" / f"{Path(self.hub_name).name}-{digest}"
        return Path(self.text).parent if self.table else Path(self.text)

    @property
    def table(self) -> Path | None:
        """The table of pictures that was given instead of a folder."""
        file = Path(self.text)
        is_file = self.hub_name is None and not file.is_dir()
        return file if is_file and file.suffix.lower() in TABLE_ENDINGS else None


def find_place(text: str | Path) -> Place:
    """Return the place that a user calls `text`. FractalError: it does not exist, is a file but no
    table, names no data set of the hub, or its path has control characters."""
    name = str(text)
    is_hub, place = name.startswith(HUB), Path(name.removeprefix(HUB))
    is_table = place.is_file() and place.suffix.lower() in TABLE_ENDINGS
    if name == HUB:
        raise FractalError("hub: is followed by no name: give one, such as hub:owner/flowers")
    if not (is_hub or is_table or place.is_dir()):
        problem = "is a file" if place.exists() else "does not exist"
        raise FractalError(
            f"{name} {problem}: give the folder that has the images, a table of pictures (.csv or "
            f".parquet), or hub:NAME"
        )
    if is_hub:
        resolved = f"{HUB}{place.resolve()}" if place.is_dir() else name
    else:
        resolved = str(place.resolve())
    if printable_name(resolved) != resolved:
        raise FractalError(
            f"{printable_name(resolved)} is not UTF-8 or has control characters: rename the folder"
        )
    return Place(resolved)
