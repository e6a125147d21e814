"""ADM's published reference files: mean and covariance of a data set's features, and some images.

Source: the `evaluations` folder of ADM's repository (Dhariwal and Nichol, 2021). Files such as
`adm_in64_stats.npz` have `mu` and `sigma`; files such as `VIRTUAL_imagenet64_labeled.npz` also have
`arr_0`, 10,000 images.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.metrics.npz import NotNpzError, array_names, read_arrays
from fractal_model.metrics.reference import PublishedStatistics

WIDTH = 2048
MOST_IMAGES = 50_000
_SYMMETRIC, _NEGATIVE = 1e-6, 1e-3
"""Tolerances for rounding errors of a covariance: its asymmetry, relative to its largest entry, and
its most negative eigenvalue, relative to its trace."""
_MEANS, _TRACES = (-1e-3, 100.0), (1e-3, 1e5)
"""Ranges of valid means and traces. Pool_3 features have means of some tenths and a trace of some
hundreds; a file with sums or products in place of means and covariances is far outside."""
_RESOLUTIONS = (32, 64, 128, 256, 512, 1024)
_SHOWN = 5


def load_published(file: Path, resolution: int) -> PublishedStatistics:
    """Read the statistics in ADM's file for a data set of `resolution` pixels. FractalError: the
    file is missing, damaged or pickled; mu or sigma is missing, not finite, or of another shape,
    type or scale; sigma is no covariance; arr_0 has no images or another resolution."""
    images_bytes = MOST_IMAGES * resolution**2 * 3
    most_bytes = {"mu": 16 * WIDTH, "sigma": 16 * WIDTH**2, "arr_0": images_bytes}
    try:
        arrays = read_arrays(file, most_bytes)
    except FileNotFoundError as error:
        raise FractalError(f"{file} is missing: give ADM's reference file") from error
    except (NotNpzError, OSError) as error:
        raise FractalError(
            f"{file} cannot be read ({error}): fetch ADM's reference file again"
        ) from error
    if {"mu", "sigma"} - arrays.keys():
        names = ", ".join(map(repr, array_names(file)[:_SHOWN]))
        raise _unfit_error(file, f"it has {names or 'nothing'}")
    mean, covariance = _require_statistics(file, arrays["mu"], arrays["sigma"])
    images = _require_images(file, arrays["arr_0"], resolution) if "arr_0" in arrays else None
    return PublishedStatistics(f"ADM: {file.name}", mean, covariance, images)


def conflicting_resolution(file: Path, resolution: int) -> int | None:
    """Return the resolution in a file's name if it differs from the data set's `resolution`; None
    if the two agree or the name has no resolution."""
    numbers = [int(digits) for digits in re.findall(r"\d+", file.name)]
    sides = [number for number in numbers if number in _RESOLUTIONS]
    return sides[0] if sides and resolution not in sides else None


def _require_images(file: Path, images: np.ndarray, resolution: int) -> Tensor:
    if images.dtype != np.uint8 or images.shape[1:] != (resolution, resolution, 3):
        raise FractalError(
            f"{file} has images {images.dtype} {images.shape[1:]}, expected the data set's "
            f"uint8 {(resolution, resolution, 3)}: give the file of the same resolution"
        )
    if not len(images):
        raise _unfit_error(file, "arr_0 holds no images")
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _require_statistics(
    file: Path, mean: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Check the arrays `mu` and `sigma` of a file and return both as float64. FractalError: they
    cannot be the mean and covariance of Inception features."""
    if mean.shape != (WIDTH,) or covariance.shape != (WIDTH, WIDTH):
        raise _unfit_error(file, f"mu has shape {mean.shape}, sigma {covariance.shape}")
    for name, array in (("mu", mean), ("sigma", covariance)):
        if array.dtype.kind != "f":
            raise _unfit_error(file, f"{name} holds {array.dtype}, not real floating-point numbers")
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise _unfit_error(file, "there are NaN or infinite numbers")
    if not (_MEANS[0] <= mean.min() and mean.max() <= _MEANS[1]):
        raise _unfit_error(file, f"mu reaches from {mean.min():.3g} to {mean.max():.3g}")
    trace = np.trace(covariance)
    if not _TRACES[0] <= trace <= _TRACES[1]:
        raise _unfit_error(file, f"sigma has the trace {trace:.3g}, features have some hundreds")
    if np.abs(covariance - covariance.T).max() > _SYMMETRIC * np.abs(covariance).max():
        raise _unfit_error(file, "sigma is not symmetric")
    if np.linalg.eigvalsh(covariance)[0] < -_NEGATIVE * trace:
        raise _unfit_error(file, "sigma has negative eigenvalues, so it is no covariance")
    return mean, covariance


def _unfit_error(file: Path, problem: str) -> FractalError:
    return FractalError(
        f"{file} is not ADM's reference file: {problem}; expected finite mu ({WIDTH},) and sigma "
        f"({WIDTH}, {WIDTH}) of Inception's pool_3; give a file such as adm_in64_stats.npz"
    )
