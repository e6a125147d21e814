"""A small ImageNet of smooth random images, in all forms in which ImageNet is distributed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import scipy.io

CLASSES = {"n01440764": "tench, Tinca tinca", "n02012849": "crane", "n03126707": "crane"}
DEVKIT_IDS = {"n01440764": 3, "n02012849": 1, "n03126707": 2}
"""Numbers of the classes in the devkit, which are not the labels."""
TRAIN_EACH, VALIDATION = 9, 6


def photograph(seed: int, width: int = 50, height: int = 37) -> PIL.Image.Image:
    random = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)


def encode(image: PIL.Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def train_images() -> dict[str, dict[str, bytes]]:
    """The training images by class and file name, with ImageNet's unusual formats among them."""
    images: dict[str, dict[str, bytes]] = {}
    for number, class_id in enumerate(CLASSES):
        for index in range(TRAIN_EACH):
            image = photograph(100 * number + index, 40 + 3 * index, 37 + 5 * (index % 3))
            images.setdefault(class_id, {})[f"{class_id}_{index}.JPEG"] = encode(image)
    first = images["n01440764"]
    first["n01440764_1.JPEG"] = encode(photograph(1), "PNG")
    first["n01440764_2.JPEG"] = encode(photograph(2).convert("CMYK"))
    first["n01440764_3.JPEG"] = encode(photograph(3).convert("L"))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    first["n01440764_4.JPEG"] = encode(photograph(4), exif=exif)
    return images


def validation_images() -> dict[str, tuple[str, bytes]]:
    """The class and the bytes of each validation image, by file name."""
    ids = list(CLASSES)
    return {
        f"ILSVRC2012_val_{number:08d}.JPEG": (ids[number % 3], encode(photograph(1000 + number)))
        for number in range(1, VALIDATION + 1)
    }


def write_devkit(root: Path, *, packed: bool = True) -> None:
    rows = [(DEVKIT_IDS[wnid], wnid, words, 0) for wnid, words in CLASSES.items()]
    rows.append((1001, "n00001740", "entity", 3))  # an inner node of WordNet, not a class
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    synsets = np.array(rows, dtype=[*kinds, ("num_children", object)])
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    truth = "".join(f"{DEVKIT_IDS[wnid]}\n" for wnid, _ in validation_images().values())
    name = "ILSVRC2012_devkit_t12"
    files = {
        "meta.mat": meta.getvalue(),
        "ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }
    if packed:
        with tarfile.open(root / f"{name}.tar.gz", "w:gz") as archive:
            for file, content in files.items():
                add(archive, f"{name}/data/{file}", content)
        return
    (root / name / "data").mkdir(parents=True)
    for file, content in files.items():
        (root / name / "data" / file).write_bytes(content)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def tar_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return file.getvalue()


def write_archives(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    # Written in another order than the names, by which the listing is sorted.
    classes = {f"{wnid}.tar": tar_of(files) for wnid, files in reversed(train_images().items())}
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(classes))
    validation = {name: content for name, (_, content) in validation_images().items()}
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(validation))
    write_devkit(root)
    return root


def write_tree(root: Path, *, flat: bool = False) -> Path:
    for class_id, files in train_images().items():
        for name, content in files.items():
            put(root / "train" / class_id / name, content)
    for name, (class_id, content) in validation_images().items():
        put(root / "val" / name if flat else root / "val" / class_id / name, content)
    write_devkit(root, packed=False)
    return root


def write_parquet(root: Path) -> Path:
    names = ["tench, Tinca tinca", "crane, bird", "crane"]  # `datasets` requires unique names
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    ids = list(CLASSES)
    train = [
        {"image": {"bytes": content, "path": name}, "label": ids.index(class_id)}
        for class_id, files in train_images().items()
        for name, content in files.items()
    ]
    validation = [
        {"image": {"bytes": content, "path": name}, "label": ids.index(class_id)}
        for name, (class_id, content) in validation_images().items()
    ]
    (root / "data").mkdir(parents=True)
    half = len(train) // 2
    for name, rows in (
        ("train-00000-of-00002", train[:half]),
        ("train-00001-of-00002", train[half:]),
        ("validation-00000-of-00001", validation),
    ):
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(root / "data" / f"{name}.parquet", batch_size=5)
    return root


FORMS = {"archives": write_archives, "tree": write_tree, "parquet": write_parquet}


def put(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
