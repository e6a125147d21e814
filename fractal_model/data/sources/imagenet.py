"""Read the files that come with ImageNet: class names, and the validation images' classes.

The files are the devkit (`ILSVRC2012_devkit_t12`, packed or not) or Kaggle's two text files. A
label is the position of the class's WordNet id among the sorted ids, as is usual in the field. The
devkit's own class numbers are different.
"""

import csv
import gzip
import io
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import scipy.io

from fractal_model.common.errors import FractalError, one_line

CLASSES = 1000
IMAGES = {"train": 1_281_167, "validation": 50_000}
WNID = re.compile(r"n\d{8}")
_DEVKIT = "ILSVRC2012_devkit_t12"
_META, _TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
_KAGGLE_NAMES, _KAGGLE_TRUTH = "LOC_synset_mapping.txt", "LOC_val_solution.csv"
_VALIDATION_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\b")


@dataclass
class Companions:
    """Contents of the files that come with ImageNet's images; empty if there are none."""

    names: dict[str, str] = field(default_factory=dict)
    """Class names by WordNet id."""
    validation: dict[str, str] = field(default_factory=dict)
    """The class of each validation image, a WordNet id, by file name without its ending."""


def find_companions(root: Path) -> Companions:
    """Read the devkit in `root`, or Kaggle's text files in `root` or up to three folders above.
    Without them the result is empty. FractalError: one of these files cannot be read."""
    companions = Companions()
    try:
        devkit = _devkit_files(root)
        if _META in devkit:
            companions = _read_devkit(devkit[_META], devkit.get(_TRUTH, b""))
        for folder in (root, *list(root.parents)[:3]):
            mapping, solution = folder / _KAGGLE_NAMES, folder / _KAGGLE_TRUTH
            if not companions.names and mapping.is_file():
                lines = (line.split(maxsplit=1) for line in mapping.read_text().splitlines())
                companions.names = {line[0]: line[1] for line in lines if len(line) == 2}
            if not companions.validation and solution.is_file():
                with solution.open(newline="") as opened:
                    companions.validation = {
                        row["ImageId"]: row["PredictionString"].split()[0]
                        for row in csv.DictReader(opened)
                    }
    except Exception as error:  # The parsers of tar, gzip and MATLAB raise many types.
        raise FractalError(
            f"the files beside the images in {root} (devkit or Kaggle's text files) cannot be "
            f"read: {one_line(error)}; fetch them again or remove them"
        ) from error
    return companions


def _devkit_files(root: Path) -> dict[str, bytes]:
    packed = root / f"{_DEVKIT}.tar.gz"
    if packed.is_file():
        # Unpack to the end, so that gzip checks its checksum; `tarfile` would stop before it.
        unpacked = io.BytesIO(gzip.decompress(packed.read_bytes()))
        with tarfile.open(fileobj=unpacked, mode="r:") as archive:
            return {
                Path(member.name).name: opened.read()
                for member in archive
                if member.isfile() and Path(member.name).name in (_META, _TRUTH)
                if (opened := archive.extractfile(member))
            }
    folders = (root / _DEVKIT / "data", root / "data", root)
    return {
        name: (folder / name).read_bytes()
        for folder in reversed(folders)
        for name in (_META, _TRUTH)
        if (folder / name).is_file()
    }


def _read_devkit(meta: bytes, truth: bytes) -> Companions:
    synsets = scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    # The list also has inner nodes of the WordNet tree, which are no classes.
    classes = {
        int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"]))
        for row in synsets.ravel()
        if int(row["num_children"]) == 0
    }
    lines = enumerate(truth.decode().split(), start=1)
    validation = {f"ILSVRC2012_val_{number:08d}": classes[int(line)][0] for number, line in lines}
    return Companions(names=dict(classes.values()), validation=validation)


def validation_class(name: str, companions: Companions) -> str | None:
    """Return the WordNet id of the validation image with the file name `name`; None if unknown."""
    match = _VALIDATION_NUMBER.match(name)
    return companions.validation.get(match.group(0) if match else Path(name).stem)


def class_refusal(name: str, class_id: str) -> str | None:
    """Return the reason to refuse the file `name` in the class `class_id` if its name begins with
    another class, or None if it does not. Classes are WordNet ids."""
    named_class = WNID.match(name)
    if named_class and named_class.group(0) != class_id:
        return f"its name says class {named_class.group(0)}, it is in {class_id}"
    return None
