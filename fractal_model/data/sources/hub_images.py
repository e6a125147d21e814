"""List the images of a data set of the Hugging Face hub, in any of the forms that `datasets` loads.

Decided here: `datasets` downloads the files to its own cache. The images are then written, as they
are, to one uncompressed tar per split in our cache, so that they are read like ImageNet's. A tar
also has the images without a label, so it depends on the images and their order alone, and sources
with other labels can share it. The listing has its checksum.
"""

import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path, PurePosixPath

import datasets

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import atomic_file, require_regular_file, sha256
from fractal_model.data.sources.listing import (
    SPLIT_NAMES,
    TRAIN,
    ListingBuilder,
    Progress,
    size_refusal,
)
from fractal_model.data.sources.picture_tables import (
    LABEL_COLUMNS,
    find_names,
    require_one_label,
)
from fractal_model.data.sources.places import Place

_ENDING = re.compile(r"\.[a-z0-9]{1,5}")
_REPORTED_ROWS = 100


def list_hub(place: Place, name: str, label: str | None, progress: Progress) -> ListingBuilder:
    """Load the data set at `place` and list its images, in order. The image feature is found by its
    type; so is the label feature, unless `label` names it. Without a label all images are one
    class, `name`. FractalError: the data set cannot be loaded, has no training images, or has none
    or several features that could be meant."""
    splits = _load(place)
    features = splits[TRAIN].features
    image = _image_feature(place, features)
    label = _label_feature(place, features, label)
    builder = ListingBuilder(_class_names(features, label), in_order=True)
    place.root.mkdir(parents=True, exist_ok=True)
    for split, dataset in splits.items():
        file = place.root / f"{split}.tar"
        try:
            with atomic_file(file, unique=True) as partial, tarfile.open(partial, "w") as archive:
                for number, row in enumerate(_iterate_rows(dataset, image, label)):
                    content, ending, value = row
                    class_id = name if label is None else _class_id(value)
                    _add(builder, archive, split, class_id, f"{number:08d}{ending}", content)
                    if number % _REPORTED_ROWS == 0:
                        progress(len(builder))
        except OSError as error:
            raise FractalError(
                f"the images of {place} cannot be copied to {place.root} ({one_line(error)}): make "
                f"room, or set FRACTAL_CACHE to another folder, and register it again"
            ) from error
        builder.files[file.name] = sha256(file)
    return builder


def _load(place: Place) -> dict[str, datasets.Dataset]:
    """Load the training and the validation split; other splits, such as test, are left out."""
    try:
        loaded = datasets.load_dataset(place.hub_name)
    except Exception as error:  # The libraries below raise many types.
        raise FractalError(
            f"{place} cannot be loaded ({one_line(error)}): check its name and the network, or "
            f"download its files and register their folder"
        ) from error
    splits = {SPLIT_NAMES.get(str(name).casefold()): split for name, split in loaded.items()}
    if TRAIN not in splits:
        raise FractalError(f"{place} has the splits {', '.join(loaded)}, expected train")
    return {name: split for name, split in splits.items() if name is not None}


def _image_feature(place: Place, features: datasets.Features) -> str:
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(images) != 1:
        raise FractalError(
            f"{place} has {len(images)} image features in {', '.join(features)}, expected one: "
            f"write its pictures to a folder and register that"
        )
    return images[0]


def _label_feature(place: Place, features: datasets.Features, label: str | None) -> str | None:
    """Return the name of the label: `label`, the one feature that has classes, or one that is
    called label or class. None if there is none."""
    if label is not None:
        if label not in features or isinstance(features[label], datasets.Image):
            raise FractalError(
                f"{place} has no label {label!r}, its features are {', '.join(features)}",
                setting="label",
            )
        return label
    kind = datasets.ClassLabel
    labels = [name for name, feature in features.items() if isinstance(feature, kind)]
    labels = labels or find_names(features, LABEL_COLUMNS)
    require_one_label(labels, place, "features")
    return labels[0] if labels else None


def _class_names(features: datasets.Features, label: str | None) -> dict[str, str]:
    feature = features[label] if label is not None else None
    names = feature.names if isinstance(feature, datasets.ClassLabel) else []
    return {_class_id(number): name for number, name in enumerate(names)}


def _class_id(value: object) -> str:
    """Return the class id of a label, with numbers in four digits as for parquet files. It is empty
    if the label says that there is none."""
    if isinstance(value, int):
        return f"{value:04d}" if value >= 0 else ""
    return "" if value is None else str(value)


def _iterate_rows(
    dataset: datasets.Dataset, image: str, label: str | None
) -> Iterator[tuple[bytes | None, str, object]]:
    """Yield each image's bytes (None: its file cannot be read), the ending of its name, and its
    label."""
    columns = [image, *([label] if label is not None else [])]
    encoded = dataset.select_columns(columns).cast_column(image, datasets.Image(decode=False))
    for row in encoded:
        picture = row[image] or {"bytes": b"", "path": None}
        path = picture["path"] or ""
        content = picture["bytes"]
        if content is None:
            content = _read_file(Path(path))
        ending = PurePosixPath(path).suffix.lower()
        yield content, ending if _ENDING.fullmatch(ending) else "", row.get(label)


def _read_file(file: Path) -> bytes | None:
    """Return the content of an image's file; None if there is none that an image can have."""
    with suppress(OSError, ValueError):  # ValueError: the path has a null character.
        require_regular_file(file)
        if size_refusal(file.stat().st_size) is None:
            return file.read_bytes()
    return None


def _add(
    builder: ListingBuilder,
    archive: tarfile.TarFile,
    split: str,
    class_id: str,
    name: str,
    content: bytes | None,
) -> None:
    reason = "its file cannot be read" if content is None else size_refusal(len(content))
    if content is None or reason:
        builder.refuse(split, f"{class_id}/{name}" if class_id else name, str(reason))
        return
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, BytesIO(content))
    if not class_id:
        builder.refuse(split, name, "it has no label")
        return
    blocks = -(-len(content) // tarfile.BLOCKSIZE)
    offset = archive.offset - blocks * tarfile.BLOCKSIZE
    builder.add(split, class_id, name, f"{split}.tar", offset, len(content))
