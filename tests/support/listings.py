"""The contents of listings, and errors, for tests of sources."""

from pathlib import Path

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.data.sources.listing import Listing
from fractal_model.data.sources.reading import SourceReader
from tests.support import mini_imagenet as mini


def contents(root: Path, listing: Listing) -> dict[tuple[str, int], list[bytes]]:
    """The bytes of all images in a listing by split and label, read by `SourceReader`."""
    reader = SourceReader(root)
    images: dict[tuple[str, int], list[bytes]] = {}
    for split in listing.splits():
        for image in listing.rows(split, 0, listing.count(split)):
            images.setdefault((split, image.label), []).append(reader.read(image))
    return images


def expected() -> dict[tuple[str, int], list[bytes]]:
    """The bytes of all images of the mini ImageNet by split and label."""
    ids = list(mini.CLASSES)
    images: dict[tuple[str, int], list[bytes]] = {
        ("train", ids.index(class_id)): [files[name] for name in sorted(files)]
        for class_id, files in mini.train_images().items()
    }
    for _, (class_id, content) in sorted(mini.validation_images().items()):
        images.setdefault(("validation", ids.index(class_id)), []).append(content)
    return images


def assert_refused(call, message: str) -> None:
    """Require that `call` raises FractalError with `message`, on one line."""
    with pytest.raises(FractalError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
