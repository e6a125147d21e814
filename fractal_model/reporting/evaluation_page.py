"""Write the page of an evaluation as one HTML file that needs no other file.

Decided here: the pictures are inside the file, as PNG and SVG. There are no scripts and no links.
Names are escaped. If there are many classes, the page shows a few, evenly spread, and says so.

Shapes: N samples of side S, M real images, D features each.
"""

import base64
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from torch import Tensor

from fractal_model.common.plurals import count_of
from fractal_model.common.safe_text import LONGEST_NAME, safe_text
from fractal_model.evaluation.sample_set import SampleSet
from fractal_model.generation.pictures import picture_grid, png_bytes, sample_grid
from fractal_model.metrics.names import STANDARD_ERROR, error_name
from fractal_model.reporting import figures
from fractal_model.reporting.neighbours import (
    RealImages,
    find_nearest,
    is_inside_manifold,
    measure_memorisation,
    share_by_class,
)
from fractal_model.reporting.reference_curve import ReferenceCurve

SHOWN_CLASSES, SHOWN_PER_CLASS = 20, 10
NEAREST_SAMPLES, NEIGHBOURS = 8, 4
"""Number of samples shown, and number of nearest training images shown beside each."""
DISTANCE = "distance to the nearest training image"
AGREEMENT = "nearest training image is of the same class"
Numbers = TypeVar("Numbers", bound=Sized)


@dataclass(frozen=True)
class Headline:
    """A metric and its standard error as texts. For 35.46 ± 0.52 they are 35.46 and 0.52."""

    name: str
    value: str
    error: str
    """The standard error; empty if the metric has none."""


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture with its caption."""

    caption: str
    picture: str
    """The picture as PNG in a `data:` URL."""
    alt: str


def write_report(
    file: Path,
    *,
    title: str,
    record: Mapping[str, object],
    values: Mapping[str, float],
    absent: Mapping[str, str],
    samples: SampleSet,
    class_names: Sequence[str],
    class_mismatch: str = "",
    features: Tensor | None,
    real: RealImages | None,
    held_out_features: Tensor | None = None,
    held_out_bits: Tensor | None = None,
    level_bits: Mapping[str, float] | None = None,
    curves: Mapping[str, figures.Points] | None = None,
    curve_reference: ReferenceCurve | None = None,
) -> None:
    """Write the page of an evaluation.

    record: the nested record of the evaluation. values: metrics by name; absent: for each other
    metric, why it has no value. samples: N samples of the classes in class_names; features (N, D):
    the samples' Inception features. class_mismatch: how the classes differ from those of the real
    images, "" if they are equal; if they differ, the page has no figures by class. real: see
    `reference_images`. held_out_features (K, D), held_out_bits (K,): features and bits per
    dimension of validation images. level_bits: bits per dimension of each likelihood term. curves:
    training curves by name, drawn over curve_reference. If an argument is None, the page leaves out
    its section. FractalError: features are not finite.
    """
    names = distinct_names([safe_text(name, LONGEST_NAME) for name in class_names])
    loader = PackageLoader("fractal_model.reporting", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html").render(
        title=safe_text(title),
        headlines=headlines(values),
        absent={name: safe_text(reason) for name, reason in absent.items()},
        record=flatten(record),
        curves=_figure(partial(figures.training_curves, reference=curve_reference), curves),
        likelihood=_figure(figures.likelihood_histogram, held_out_bits),
        levels=_figure(partial(figures.bars, label="bits per dimension"), level_bits),
        classes=_class_pictures(samples, names),
        class_count=len(names),
        class_mismatch=class_mismatch,
        **_feature_space_values(
            samples, names, features, real, held_out_features, by_class=not class_mismatch
        ),
    )
    file.write_text(page, encoding="utf-8")


def headlines(values: Mapping[str, float]) -> list[Headline]:
    """Return each metric of `values` as texts, together with its standard error, in the same
    order."""
    return [
        Headline(name, f"{value:.4g}", f"{values[error]:.2g}" if error in values else "")
        for name, value in values.items()
        if not name.endswith(STANDARD_ERROR)
        for error in [error_name(name)]
    ]


def flatten(record: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Turn a nested mapping into a flat one of texts: {"a": {"b": 1}} becomes {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[f"{prefix}{key}"] = safe_text(", ".join(map(str, value))) or "none"
        else:
            flat[f"{prefix}{key}"] = "none" if value is None else safe_text(value)
    return flat


def distinct_names(names: Sequence[str]) -> list[str]:
    """Add the class number to names that several classes have, such as ImageNet's two cranes."""
    return [f"{n} ({i})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _feature_space_values(
    samples: SampleSet,
    names: Sequence[str],
    features: Tensor | None,
    real: RealImages | None,
    held_out: Tensor | None,
    *,
    by_class: bool,
) -> dict[str, object]:
    """Return the values of the template's variables for nearest neighbours and classes. All values
    are None if `features` or `real` is None."""
    if features is None or real is None:
        keys = "memory", "real", "distances", "neighbours", "precision", "agreement"
        return dict.fromkeys(keys)
    k = min(NEIGHBOURS, len(real.features))
    distances, indices = find_nearest(features, real.features, k=k)
    memory = measure_memorisation(distances[:, 0], real, held_out)
    histograms = {"samples": memory.samples, memory.baseline_name: memory.baseline}
    agreement = precision = None
    if by_class:
        is_same_class = real.labels[indices[:, 0]] == samples.labels
        agreement = share_by_class(is_same_class, samples.labels, names)
        is_inside = is_inside_manifold(features, real.features)
        precision = share_by_class(is_inside, samples.labels, names)
    return {
        "memory": memory,
        "real": real,
        "distances": _figure(partial(figures.distance_histograms, label=DISTANCE), histograms),
        "neighbours": _neighbour_pictures(samples, names, distances, indices, real),
        "precision": _figure(partial(figures.bars, label="precision"), precision),
        "agreement": _figure(partial(figures.bars, label=AGREEMENT), agreement),
    }


def _neighbour_pictures(
    samples: SampleSet, names: Sequence[str], distances: Tensor, indices: Tensor, real: RealImages
) -> list[CaptionedPicture]:
    """Draw the few samples that are nearest to any training image, one row for each: the sample,
    then its nearest training images."""
    pictures = []
    for i in distances[:, 0].argsort()[:NEAREST_SAMPLES].tolist():
        row = torch.cat([samples.images([i]), real.pictures(indices[i].tolist())])
        name = names[int(samples.labels[i])]
        row_distances = ", ".join(f"{d:.2f}" for d in distances[i].tolist())
        alt = f"sample {i} of class {name}, then its {len(row) - 1} nearest training images"
        pictures.append(CaptionedPicture(f"{name}, sample {i}: {row_distances}", _png(row), alt))
    return pictures


def choose_classes(labels: Tensor) -> list[int]:
    """Return at most SHOWN_CLASSES of the classes that occur in `labels` (N,), evenly spread."""
    present = labels.unique().tolist()
    places = torch.linspace(0, len(present) - 1, min(SHOWN_CLASSES, len(present))).round()
    return [present[int(place)] for place in places]


def class_overview(samples: SampleSet) -> Tensor:
    """Draw one picture with a row of samples for each class that `choose_classes` returns. All
    classes must have equally many samples."""
    classes = choose_classes(samples.labels)
    numbers = [number for label in classes for number in _first_samples(samples, label)]
    images, labels = samples.images(numbers), samples.labels[numbers]
    return sample_grid(images, labels, per_class=len(numbers) // len(classes))


def _first_samples(samples: SampleSet, label: int) -> list[int]:
    """Return the positions of the first samples of a class, at most SHOWN_PER_CLASS."""
    return (samples.labels == label).nonzero()[:SHOWN_PER_CLASS, 0].tolist()


def _class_pictures(samples: SampleSet, names: Sequence[str]) -> list[CaptionedPicture]:
    pictures = []
    for number in choose_classes(samples.labels):
        row = samples.images(_first_samples(samples, number))
        alt = f"{count_of(len(row), 'sample')} of class {names[number]}"
        pictures.append(CaptionedPicture(names[number], _png(row), alt))
    return pictures


def _png(row: Tensor) -> str:
    encoded = base64.b64encode(png_bytes(picture_grid(row, columns=len(row))))
    return f"data:image/png;base64,{encoded.decode()}"


def _figure(draw: Callable[[Numbers], Figure], numbers: Numbers | None) -> str | None:
    """Return as an SVG element what `draw` makes of `numbers`; None if there are no numbers."""
    return None if numbers is None or not len(numbers) else figures.svg(draw(numbers))
