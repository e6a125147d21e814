"""List images in folders: unpacked ImageNet or a user's own images."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import PIL.Image

from fractal_model.common.errors import FractalError
from fractal_model.common.litter import is_litter
from fractal_model.data.sources.imagenet import WNID, Companions, class_refusal, validation_class
from fractal_model.data.sources.listing import (
    NO_TRUTH,
    SPLIT_NAMES,
    TRAIN,
    VALIDATION,
    WHOLE_FILE,
    ListingBuilder,
    Progress,
    printable_name,
    size_refusal,
)

_OTHER_SPLITS = {"training", "valid", "dev", "test", "testing"}
"""Names that folders of splits often have, in lower case, besides `train` and `validation`. If all
folders have such names, none is read as a class."""
_REPEATED = "a link to images that are listed anyway: remove it"


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the splits in `root`, by split. Capitals in a folder's name do not
    matter. A split without a folder is left out. FractalError: a split has two folders."""
    base, folders = _base(root), dict[str, Path]()
    for entry in _entries(base):
        split = SPLIT_NAMES.get(entry.name.casefold())
        if split is None or not _is_folder(entry):
            continue
        if split in folders:
            raise FractalError(
                f"{base} has both {folders[split].name} and {entry.name}: expected one folder of "
                f"{split} images, move the other one away"
            )
        folders[split] = Path(entry.path)
    if TRAIN not in folders and [f.name.casefold() for f in folders.values()] == ["valid"]:
        return {}  # `valid` alone is a class, such as valid coins.
    return {split: folders[split] for split in (TRAIN, VALIDATION) if split in folders}


def ignored_folders(root: Path) -> list[str]:
    """Return the names of the folders that are not read: those beside the folders of the splits,
    such as `test` beside `train` and `val`. If no folder is a split, every folder is read as a
    class, so the list is empty."""
    if not split_folders(root):
        return []
    return [
        printable_name(entry.name)
        for entry in _entries(_base(root))
        if _is_folder(entry) and entry.name.casefold() not in SPLIT_NAMES
    ]


def _base(root: Path) -> Path:
    """Return the folder that contains the splits' folders. It is `root`, or the folder
    ILSVRC/Data/CLS-LOC in `root` if there is one, as in Kaggle's ImageNet."""
    kaggle = root / "ILSVRC" / "Data" / "CLS-LOC"
    return kaggle if kaggle.is_dir() else root


def has_class_folders(root: Path) -> bool:
    """True if `train/` has a folder that is named after a class of ImageNet (a WordNet id)."""
    train = split_folders(root).get(TRAIN)
    return any(WNID.fullmatch(e.name) for e in _entries(train) if _is_folder(e)) if train else False


def list_imagenet_tree(root: Path, companions: Companions, progress: Progress) -> ListingBuilder:
    """List unpacked ImageNet: training images in `train/<wnid>/`, validation images in
    `val/<wnid>/` or directly in `val/`. For the images directly in `val/`, `companions` has the
    classes."""
    builder = ListingBuilder(companions.names)
    for split, folder in split_folders(root).items():
        entries = _entries(folder)
        repeated = _repeated_folders(folder, entries)
        for entry in entries:
            if entry.name in repeated:
                builder.refuse(split, entry.name, _REPEATED)
            elif _is_folder(entry):
                _list_class(root, split, Path(entry.path), builder, imagenet=True)
            elif split == VALIDATION and (class_id := validation_class(entry.name, companions)):
                add_file(builder, root, split, class_id, entry.name, entry.path)
            elif split == VALIDATION and _has_image_ending(entry.name):
                builder.refuse(split, entry.name, NO_TRUTH)
            else:
                builder.refuse(split, entry.name, "not in a class's folder")
            progress(len(builder))
    return builder


def require_no_validation_folder(root: Path, holdout: float) -> None:
    """Raise FractalError if `root` has a folder of validation images, because then the share
    `holdout` of the training images cannot become the validation split."""
    folder = split_folders(root).get(VALIDATION)
    if folder is None:
        return
    has_images = any(_has_image_ending(name) for name, _ in _iterate_files(folder))
    problem, way_out = "has no images", "remove that folder, or put the validation images there"
    if has_images:
        problem = "has validation images already"
        way_out = "use no holdout, or move that folder away"
    raise FractalError(
        f"{holdout} of the images are to be held out, but {folder} {problem}: {way_out}",
        setting="holdout",
    )


def list_folder(root: Path, name: str, progress: Progress) -> ListingBuilder:
    """List a user's images in `train/<class>/` and `validation/<class>/`, or in `<class>/`. Images
    in `train/` and `validation/` or in `root` are one class, `name`, if there is no class folder.
    FractalError: there are validation images without training images, or splits of other names."""
    builder = ListingBuilder()
    folders = split_folders(root)
    if not folders:
        _require_classes(root)
    if VALIDATION in folders and TRAIN not in folders:
        raise FractalError(
            f"{root} has {folders[VALIDATION].name}/ and no train/: put train/<class>/ there, or "
            f"give the folder that has <class>/ and a share to hold out, such as 0.1",
            setting="holdout",
        )
    for split, folder in (folders or {TRAIN: root}).items():
        train_classes, entries = builder.classes(), _entries(folder)
        repeated = _repeated_folders(folder, entries)
        is_flat = not any(map(_is_folder, entries)) and train_classes <= {name}
        for entry in entries:
            if entry.name in repeated:
                builder.refuse(split, entry.name, _REPEATED)
            elif _is_folder(entry):
                allowed = train_classes if split == VALIDATION else None
                _list_class(root, split, Path(entry.path), builder, allowed=allowed)
                progress(len(builder))
            elif _has_image_ending(entry.name) and is_flat:
                add_file(builder, root, split, name, entry.name, entry.path)
            elif _has_image_ending(entry.name):
                builder.refuse(split, entry.name, "not in a class's folder")
    return builder


def _require_classes(root: Path) -> None:
    """Raise FractalError if every folder in `root` has the name of a split, so none is a class."""
    names = [entry.name for entry in _entries(root) if _is_folder(entry)]
    if names and all(name.casefold() in _OTHER_SPLITS for name in names):
        raise FractalError(
            f"{root} has {' and '.join(f'{name}/' for name in names)}, which are names of splits "
            f"and not of classes: rename the folder of training images to train, and that of "
            f"validation images to validation"
        )


def _repeated_folders(folder: Path, entries: list[os.DirEntry]) -> set[str]:
    """Return the names of the links in `folder` that would list images a second time: links to
    another class folder, to a folder within one, or to a folder that contains one."""
    base, listed, repeated = folder.resolve(), set[Path](), set[str]()
    above = {base, *base.parents}
    links = {entry.name for entry in entries if entry.is_symlink()}
    for entry in sorted(entries, key=lambda entry: entry.name in links) if links else ():
        if not _is_folder(entry):
            continue
        place = Path(entry.path).resolve() if entry.name in links else base / entry.name
        if entry.name in links and (place in above or listed & {place, *place.parents}):
            repeated.add(entry.name)
        else:
            listed.add(place)
            above.update(place.parents)
    return repeated


def _list_class(
    root: Path,
    split: str,
    folder: Path,
    builder: ListingBuilder,
    *,
    imagenet: bool = False,
    allowed: set[str] | None = None,
) -> None:
    """List the files in the folder of a class and its subfolders. If `allowed` is given and lacks
    the folder's name, or if with `imagenet` the name is no WordNet id, refuse each file, so that
    the report counts them all."""
    class_id, before = folder.name, len(builder)
    misplaced = None
    if imagenet and not WNID.fullmatch(class_id):
        misplaced = "its folder's name is no class such as n01440764"
    elif allowed is not None and class_id not in allowed:
        misplaced = f"there are no training images of the class {class_id}"
    for name, entry in _iterate_files(folder):
        reason = misplaced or (class_refusal(entry.name, class_id) if imagenet else None)
        if _is_folder(entry):
            reason = "a link to a folder: put the folder itself there"
        if reason:
            builder.refuse(split, f"{class_id}/{name}", reason)
        else:
            add_file(builder, root, split, class_id, name, entry.path)
    if len(builder) == before:
        builder.note_unused(split, class_id)


def _iterate_files(folder: Path, above: str = "") -> Iterator[tuple[str, os.DirEntry]]:
    """Yield each file in `folder` and its subfolders: the path relative to the class's folder, and
    the directory entry. `above` is the path of `folder` in the class's folder, with a final slash.
    Links to folders are yielded but not entered, because links may form a circle."""
    for entry in _entries(folder):
        name = f"{above}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _iterate_files(Path(entry.path), f"{name}/")
        else:
            yield name, entry


def add_file(
    builder: ListingBuilder, root: Path, split: str, class_id: str, name: str, path: str | Path
) -> None:
    """Add the file `path`, which is below `root`, to a listing as the image `name` of a class.
    Refuse it if it cannot be read, has no usable size, or is not named like an image."""
    size, reason = 0, None
    try:
        status = os.stat(path)
        size, reason = status.st_size, size_refusal(status.st_size)
        if not stat.S_ISREG(status.st_mode):
            reason = "not a regular file"
        if not _has_image_ending(name):
            reason = "its name does not end like an image's"
    except FileNotFoundError:
        reason = "a link that leads nowhere" if os.path.islink(path) else "there is no such file"
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
    except ValueError:  # A path of a table can have a null character.
        reason = "its path has a null character"
    if reason:
        builder.refuse(split, f"{class_id}/{name}", reason)
    else:
        file = Path(path).relative_to(root).as_posix()
        builder.add(split, class_id, name, file, WHOLE_FILE, size)


def _is_folder(entry: os.DirEntry) -> bool:
    """True for a folder or a link to one; False for an unreadable entry or a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _entries(folder: Path) -> list[os.DirEntry]:
    """Return the entries of a folder, sorted by name. Litter (see `is_litter`) is left out."""
    try:
        with os.scandir(folder) as entries:
            clean = (entry for entry in entries if not is_litter(entry.name))
            return sorted(clean, key=lambda entry: entry.name)
    except OSError as error:
        raise FractalError(
            f"{folder} cannot be read ({error.strerror}): make it readable"
        ) from error


def _has_image_ending(name: str) -> bool:
    return Path(name).suffix.lower() in PIL.Image.registered_extensions()
