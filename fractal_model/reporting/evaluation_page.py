"""One page about one evaluation, in one HTML file that needs nothing else.

Decided here: pictures are in the file, as PNG and SVG; there is no script and no address; names
are escaped; of many classes a few are shown, evenly spread, and the page says so.

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

from fractal_model.common.safe_text import LONGEST_NAME, safe_text
from fractal_model.evaluation.sample_set import SampleSet
from fractal_model.generation.pictures import picture_grid, png_bytes, sample_grid
from fractal_model.metrics.names import STANDARD_ERROR, error_name
from fractal_model.reporting import figures
from fractal_model.reporting.neighbours import (
    RealImages,
    inside_manifold,
    memorisation,
    nearest,
    share_by_class,
)

SHOWN_CLASSES, SHOWN_PER_CLASS = 20, 10
NEAREST_SAMPLES, NEIGHBOURS = 8, 4
DISTANCE = "distance to the nearest training image"
AGREEMENT = "nearest training image is of the class"
Numbers = TypeVar("Numbers", bound=Sized)


@dataclass(frozen=True)
class Headline:
    """A metric as it is read: 35.46 ± 0.52."""

    name: str
    value: str
    error: str
    """Empty where there is none."""


@dataclass(frozen=True)
class Plate:
    """A picture with what stands below it."""

    caption: str
    picture: str
    """A data: address of a PNG."""
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
) -> None:
    """Write the page of an evaluation.

    record: the protocol's, nested as it is. values, absent: metrics, and why others have no value.
    samples: N of them, of classes of these names, with features (N, D). class_mismatch: why these
    are not the real images' classes, where they are not; then nothing is told by class.
    real: see `reference_images`. held_out_features (K, D) and held_out_bits (K,): of validation
    images. What is not given leaves its section out, with a line that says why. FractalError:
    non-finite features.
    """
    names = distinct_names([safe_text(name, LONGEST_NAME) for name in class_names])
    loader = PackageLoader("fractal_model.reporting", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html").render(
        title=safe_text(title),
        headlines=headlines(values),
        absent={name: safe_text(reason) for name, reason in absent.items()},
        record=flattened(record),
        curves=_figure(figures.training_curves, curves),
        likelihood=_figure(figures.likelihood_histogram, held_out_bits),
        levels=_figure(partial(figures.bars, label="bits per dimension"), level_bits),
        classes=_class_plates(samples, names),
        class_count=len(names),
        class_mismatch=class_mismatch,
        **_in_feature_space(
            samples, names, features, real, held_out_features, by_class=not class_mismatch
        ),
    )
    file.write_text(page, encoding="utf-8")


def headlines(values: Mapping[str, float]) -> list[Headline]:
    """Each metric with its standard error, where there is one, in the order given."""
    return [
        Headline(name, f"{value:.4g}", f"{values[error]:.2g}" if error in values else "")
        for name, value in values.items()
        if not name.endswith(STANDARD_ERROR)
        for error in [error_name(name)]
    ]


def flattened(record: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} to {"a.b": "1"}, in order."""
    flat: dict[str, str] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[f"{prefix}{key}"] = safe_text(", ".join(map(str, value))) or "none"
        else:
            flat[f"{prefix}{key}"] = "none" if value is None else safe_text(value)
    return flat


def distinct_names(names: Sequence[str]) -> list[str]:
    """Names that several classes bear (ImageNet has two cranes) get the class number too."""
    return [f"{n} ({i})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _in_feature_space(
    samples: SampleSet,
    names: Sequence[str],
    features: Tensor | None,
    real: RealImages | None,
    held_out: Tensor | None,
    *,
    by_class: bool,
) -> dict[str, object]:
    """Neighbours, distances and per-class figures; all None without features of both."""
    nothing = dict.fromkeys(("memory", "real", "distances", "pairs", "precision", "agreement"))
    if features is None or real is None:
        return nothing
    distances, numbers = nearest(features, real.features, k=min(NEIGHBOURS, len(real.features)))
    found = memorisation(distances[:, 0], real, held_out)
    shown = {"samples": found.samples, found.baseline_are: found.baseline}
    agreement = inside = None
    if by_class:
        right = real.labels[numbers[:, 0]] == samples.labels
        agreement = share_by_class(right, samples.labels, names)
        inside = share_by_class(inside_manifold(features, real.features), samples.labels, names)
    return {
        "memory": found,
        "real": real,
        "distances": _figure(partial(figures.distance_histograms, label=DISTANCE), shown),
        "pairs": _neighbour_plates(samples, names, distances, numbers, real),
        "precision": _figure(partial(figures.bars, label="precision"), inside),
        "agreement": _figure(partial(figures.bars, label=AGREEMENT), agreement),
    }


def _neighbour_plates(
    samples: SampleSet, names: Sequence[str], distances: Tensor, numbers: Tensor, real: RealImages
) -> list[Plate]:
    """The samples that are nearest to a training image, each in a row before its neighbours."""
    plates = []
    for i in distances[:, 0].argsort()[:NEAREST_SAMPLES].tolist():
        row = torch.cat([samples.images([i]), real.pictures(numbers[i].tolist())])
        name = names[int(samples.labels[i])]
        far = ", ".join(f"{d:.2f}" for d in distances[i].tolist())
        alt = f"sample {i} of class {name}, then its {len(row) - 1} nearest training images"
        plates.append(Plate(f"{name}, sample {i}: {far}", _png(row), alt))
    return plates


def shown_classes(labels: Tensor) -> list[int]:
    """Of the classes of (N,) labels, at most SHOWN_CLASSES, evenly spread."""
    present = labels.unique().tolist()
    places = torch.linspace(0, len(present) - 1, min(SHOWN_CLASSES, len(present))).round()
    return [present[int(place)] for place in places]


def first_of_each_class(samples: SampleSet) -> Tensor:
    """A picture of a balanced set: a row a class, for a few classes where there are many."""
    classes = shown_classes(samples.labels)
    numbers = [number for label in classes for number in _first(samples, label)]
    images, labels = samples.images(numbers), samples.labels[numbers]
    return sample_grid(images, labels, per_class=len(numbers) // len(classes))


def _first(samples: SampleSet, label: int) -> list[int]:
    """The numbers of a class's first samples, as many as are shown."""
    return (samples.labels == label).nonzero()[:SHOWN_PER_CLASS, 0].tolist()


def _class_plates(samples: SampleSet, names: Sequence[str]) -> list[Plate]:
    plates = []
    for number in shown_classes(samples.labels):
        row = samples.images(_first(samples, number))
        alt = f"{len(row)} samples of class {names[number]}"
        plates.append(Plate(names[number], _png(row), alt))
    return plates


def _png(row: Tensor) -> str:
    encoded = base64.b64encode(png_bytes(picture_grid(row, columns=len(row))))
    return f"data:image/png;base64,{encoded.decode()}"


def _figure(draw: Callable[[Numbers], Figure], numbers: Numbers | None) -> str | None:
    """An SVG; None where there is nothing to draw."""
    return None if numbers is None or not len(numbers) else figures.svg(draw(numbers))
