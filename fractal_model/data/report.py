"""Describe a prepared data set for people: numbers, tables and a contact sheet for DVC.

metrics.json        counts and sizes                             dvc metrics show
classes.csv         images of each class and split               dvc plots show
short-sides.csv     short sides of the raw images, in pixels     dvc plots show
kinds.csv           formats, modes and conversions of the raw images
quarantined.csv     files that were left out, with the reasons
contact-sheet.png   up to 64 training images, spread over the classes
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageDraw

from fractal_model.common.console import say
from fractal_model.common.files import atomic_folder
from fractal_model.common.safe_text import LONGEST_NAME, safe_text
from fractal_model.config.params import Params
from fractal_model.data.manifest import Manifest, read_manifest
from fractal_model.data.preparation import read_raw_counts
from fractal_model.data.prepared import PreparedSplit, open_prepared

_SHEET_SIDE = 8  # images per row
_SMALLEST_CELL = 64  # pixels
_CAPTION = 14  # pixels below an image


def report_dataset(params: Params, dataset: str) -> None:
    """Write the report of the data set `dataset` to the folder `<dataset>-report` beside it.
    FractalError: the data set is not prepared."""
    folder = params.paths.data / f"{dataset}-report"
    metrics = write_report(params.paths.data / dataset, folder)
    say(f"{dataset}: report of {metrics['train_images']:,.0f} training images in {folder}")


def write_report(dataset_folder: Path, folder: Path) -> dict[str, float]:
    """Write the report of a data set to `folder` and replace an older report. Return the numbers of
    metrics.json. Equal data sets give equal bytes. FractalError: the data set cannot be opened."""
    manifest = read_manifest(dataset_folder)
    metrics = _metrics(manifest)
    sheet = contact_sheet(open_prepared(dataset_folder, next(iter(manifest.splits))))
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder, "the report") as partial:
        text = json.dumps(metrics, indent=2)
        (partial / "metrics.json").write_text(text + "\n")
        left_out = [
            (safe_text(entry.file), safe_text(entry.reason)) for entry in manifest.quarantined
        ]
        tables = {
            "classes": _classes(manifest),
            "quarantined": pd.DataFrame(left_out, columns=["file", "reason"]),
            **_raw_image_tables(dataset_folder),
        }
        for name, table in tables.items():
            table.to_csv(partial / f"{name}.csv", index=False)
        sheet.save(partial / "contact-sheet.png")
    return metrics


def contact_sheet(split: PreparedSplit) -> PIL.Image.Image:
    """Draw up to 64 images of a split, sorted by class, each with its class name."""
    indices = _spread_over_classes(split.labels(), _SHEET_SIDE**2)
    scale = max(1, -(-_SMALLEST_CELL // split.manifest.resolution))
    side = split.manifest.resolution * scale
    rows = -(-len(indices) // _SHEET_SIDE)
    size = (_SHEET_SIDE * side, rows * (side + _CAPTION))
    sheet = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for place, index in enumerate(indices):
        example = split[index]
        left, top = place % _SHEET_SIDE * side, place // _SHEET_SIDE * (side + _CAPTION)
        image = PIL.Image.fromarray(example.image.permute(1, 2, 0).numpy())
        sheet.paste(image.resize((side, side), PIL.Image.Resampling.NEAREST), (left, top))
        name = safe_text(split.class_names[example.label], LONGEST_NAME)
        while draw.textlength(name) > side - 2 and len(name) > 1:
            name = name[:-2].rstrip() + "…"
        draw.text((left + 1, top + side + 1), name, fill="black")
    return sheet


def _spread_over_classes(labels: np.ndarray, count: int) -> list[int]:
    """Return the positions of up to `count` images, sorted by class. Take the first of each class,
    then the second, and so on. If there are more classes, use `count` evenly spaced classes."""
    by_class = pd.Series(np.arange(len(labels))).groupby(labels)
    turns = pd.DataFrame({"turn": by_class.cumcount(), "label": labels})
    classes = np.unique(labels)
    if len(classes) > count:
        classes = classes[np.linspace(0, len(classes) - 1, count).astype(int)]
        turns = turns[turns["label"].isin(classes)]
    selected = turns.sort_values(["turn", "label"], kind="stable").head(count)
    return selected.sort_values(["label", "turn"], kind="stable").index.tolist()


def _metrics(manifest: Manifest) -> dict[str, float]:
    metrics: dict[str, float] = {"classes": len(manifest.class_names)}
    for name, record in manifest.splits.items():
        counts = record.images_per_class
        metrics[f"{name}_images"] = record.images
        metrics[f"{name}_images_per_class_min"] = min(counts)
        metrics[f"{name}_images_per_class_max"] = max(counts)
        metrics[f"{name}_megabytes"] = round(sum(s.bytes for s in record.shards) / 1e6, 3)
        metrics[f"{name}_shards"] = len(record.shards)
    images = sum(record.images for record in manifest.splits.values())
    metrics["quarantined"] = len(manifest.quarantined)
    metrics["quarantined_share"] = len(manifest.quarantined) / (images + len(manifest.quarantined))
    return metrics


def _classes(manifest: Manifest) -> pd.DataFrame:
    counts = {name: record.images_per_class for name, record in manifest.splits.items()}
    wide = pd.DataFrame({"class": map(safe_text, manifest.class_names), **counts})
    return wide.melt("class", var_name="split", value_name="images")


def _raw_image_tables(dataset_folder: Path) -> dict[str, pd.DataFrame]:
    """Return the report's tables `short-sides` and `kinds`, by name. They are empty if the data set
    was not prepared from image files."""
    sides, kinds, notes = [], [], []
    for split, counts in read_raw_counts(dataset_folder).items():
        sides += [(int(side), split, images) for side, images in counts.short_sides.items()]
        kinds += [(split, "format", value, images) for value, images in counts.formats.items()]
        kinds += [(split, "mode", value, images) for value, images in counts.modes.items()]
        notes += [
            (split, "EXIF orientation", "rotated", counts.exif_rotated),
            (split, "EXIF", "unreadable", counts.exif_unreadable),
            (split, "name", "ends like another format", counts.misnamed),
            (split, "ICC profile", "converted to sRGB", counts.converted),
            (split, "ICC profile", "unreadable, ignored", counts.profile_unreadable),
            *((split, "transparency", f"laid on {k}", n) for k, n in counts.laid_on.items()),
            (split, "frames", "several, the first is taken", counts.several_frames),
            (split, "size", "smaller than the resolution, enlarged", counts.enlarged),
            *((split, "fit", fit, images) for fit, images in counts.fits.items()),
        ]
    return {
        "short-sides": pd.DataFrame(sorted(sides), columns=["short_side", "split", "images"]),
        "kinds": pd.DataFrame(kinds + notes, columns=["split", "kind", "value", "images"]),
    }
