"""Images in folders, a folder a class: ImageNet unpacked, or anybody's own."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import PIL.Image

from fractal_model.data.sources.imagenet import (
    WNID,
    Companions,
    validation_class,
    wrong_class,
)
from fractal_model.data.sources.listing import TRAIN, VALIDATION, WHOLE_FILE, ListingBuilder
from fractal_model.errors import FractalError

_VALIDATION_FOLDERS = ("validation", "val")

Progress = Callable[[int], None]


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits, where there are such."""
    kaggle = root / "ILSVRC" / "Data" / "CLS-LOC"
    base = kaggle if kaggle.is_dir() else root
    found = {TRAIN: base / "train"}
    for name in _VALIDATION_FOLDERS:
        found.setdefault(VALIDATION, base / name)
        if (base / name).is_dir():
            found[VALIDATION] = base / name
    return {split: folder for split, folder in found.items() if folder.is_dir()}


def list_imagenet_tree(root: Path, companions: Companions, progress: Progress) -> ListingBuilder:
    """`train/<wnid>/*`, and `val/<wnid>/*` or `val/*` with the ground truth."""
    builder = ListingBuilder()
    for split, folder in split_folders(root).items():
        for entry in _entries(folder):
            if entry.is_dir():
                _list_class(root, split, Path(entry.path), builder, imagenet=True)
            elif split == VALIDATION and (known := validation_class(entry.name, companions)):
                _list_file(root, split, known, entry, builder)
            elif split == VALIDATION and _has_image_ending(entry.name):
                builder.refuse(split, entry.name, "the ground truth does not name its class")
            else:
                builder.refuse(split, entry.name, "not in a class's folder")
            progress(len(builder))
    return builder


def list_folder(root: Path, holdout: float, progress: Progress) -> ListingBuilder:
    """`train/<class>/*` and `validation/<class>/*`, or `<class>/*` with a share held out."""
    builder = ListingBuilder()
    folders = split_folders(root)
    if TRAIN not in folders:
        folders = {TRAIN: root}
    for split, folder in folders.items():
        for entry in _entries(folder):
            if entry.is_dir():
                chosen = holdout if VALIDATION not in folders else 0.0
                _list_class(root, split, Path(entry.path), builder, holdout=chosen)
                progress(len(builder))
            elif _has_image_ending(entry.name):
                builder.refuse(split, entry.name, "not in a class's folder")
    return builder


def _list_class(
    root: Path,
    split: str,
    folder: Path,
    builder: ListingBuilder,
    *,
    imagenet: bool = False,
    holdout: float = 0.0,
) -> None:
    class_id = folder.name
    if imagenet and not WNID.fullmatch(class_id):
        builder.refuse(split, class_id, "the folder's name is no class such as n01440764")
        return
    entries = [entry for entry in _entries(folder) if not entry.is_dir()]
    held_out = _held_out(class_id, entries, holdout)
    for entry in entries:
        reason = wrong_class(entry.name, class_id) if imagenet else None
        if reason:
            builder.refuse(split, f"{class_id}/{entry.name}", reason)
        else:
            chosen = VALIDATION if entry.name in held_out else split
            _list_file(root, chosen, class_id, entry, builder)


def _list_file(
    root: Path, split: str, class_id: str, entry: os.DirEntry, builder: ListingBuilder
) -> None:
    name = f"{class_id}/{entry.name}"
    try:
        size = entry.stat().st_size
    except OSError:
        builder.refuse(split, name, "a link that leads nowhere")
        return
    if not _has_image_ending(entry.name):
        builder.refuse(split, name, "its name does not end like an image's")
    elif size == 0:
        builder.refuse(split, name, "the file is empty")
    else:
        file = Path(entry.path).relative_to(root).as_posix()
        builder.add(split, class_id, entry.name, file, WHOLE_FILE, size)


def _held_out(class_id: str, entries: list[os.DirEntry], share: float) -> set[str]:
    """This share of a class's images, at least one: those whose names have the lowest hashes."""
    names = [entry.name for entry in entries if _has_image_ending(entry.name)]
    if not share or len(names) < 2:
        return set()
    names.sort(key=lambda name: hashlib.sha256(f"{class_id}/{name}".encode()).digest())
    return set(names[: max(1, round(share * len(names)))])


def _entries(folder: Path) -> list[os.DirEntry]:
    """By name, without hidden files, which no one means as images."""
    try:
        with os.scandir(folder) as found:
            return sorted(
                (entry for entry in found if not entry.name.startswith(".")),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise FractalError(f"{folder} cannot be read ({error.strerror}): allow it") from error


def _has_image_ending(name: str) -> bool:
    return Path(name).suffix.lower() in PIL.Image.registered_extensions()


def class_folders(root: Path) -> dict[str, int]:
    """Classes found by split, by a look at the folders' names alone."""
    counts: dict[str, int] = defaultdict(int)
    for split, folder in split_folders(root).items():
        counts[split] = sum(bool(WNID.fullmatch(e.name)) for e in _entries(folder) if e.is_dir())
    return counts
