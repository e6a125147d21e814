"""What the tests of sources share."""

from pathlib import Path

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.data.sources.listing import Listing
from fractal_model.data.sources.reading import SourceReader
from tests.support import mini_imagenet as mini


def contents(root: Path, listing: Listing) -> dict[tuple[str, int], list[bytes]]:
    """Every image's bytes by split and label, as `SourceReader` finds them."""
    reader = SourceReader(root)
    found: dict[tuple[str, int], list[bytes]] = {}
    for split in listing.splits():
        for image in listing.rows(split, 0, listing.count(split)):
            found.setdefault((split, image.label), []).append(reader.read(image))
    return found


def expected() -> dict[tuple[str, int], list[bytes]]:
    ids = list(mini.CLASSES)
    found: dict[tuple[str, int], list[bytes]] = {
        ("train", ids.index(class_id)): [files[name] for name in sorted(files)]
        for class_id, files in mini.train_images().items()
    }
    for _, (class_id, content) in sorted(mini.validation_images().items()):
        found.setdefault(("validation", ids.index(class_id)), []).append(content)
    return found


def assert_refused(call, message: str) -> None:
    with pytest.raises(FractalError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
