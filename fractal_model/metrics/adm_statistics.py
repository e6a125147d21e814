"""ADM's published reference files: mean and covariance of a data set, and images of it.

Source: the `evaluations` folder of ADM's repository (Dhariwal and Nichol, 2021):
`adm_in64_stats.npz` and the like have `mu` and `sigma`, `VIRTUAL_imagenet64_labeled.npz` and the
like also `arr_0`, 10,000 images.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from fractal_model.common.errors import FractalError, one_line
from fractal_model.metrics.reference import PublishedStatistics

WIDTH = 2048
_SYMMETRIC, _NEGATIVE = 1e-6, 1e-3
"""Relative to the largest entry; relative to the trace, for what rounding leaves below 0."""


def load_published(file: Path, resolution: int) -> PublishedStatistics:
    """The statistics in ADM's file, for a data set of this resolution.

    Raises FractalError: missing, damaged, pickled, without mu or sigma, of another shape, not
    finite, no covariance, or with images of another resolution.
    """
    try:
        # Opened here, because numpy leaves a damaged file open.
        with file.open("rb") as opened:
            content = np.load(opened, allow_pickle=False)
            if isinstance(content, np.ndarray):
                raise _unfit(file, "it is a single array")
            missing = {"mu", "sigma"} - set(content.files)
            if missing:
                raise _unfit(file, f"it has {', '.join(content.files) or 'nothing'}")
            mean, covariance = (np.asarray(content[k], np.float64) for k in ("mu", "sigma"))
            images = content["arr_0"] if "arr_0" in content.files else None
    except FileNotFoundError as error:
        raise FractalError(f"{file} is missing: give ADM's reference file") from error
    except FractalError:
        raise
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise FractalError(
            f"{file} cannot be read ({one_line(error)}): fetch ADM's reference file again"
        ) from error
    _require_statistics(file, mean, covariance)
    if images is not None:
        if images.dtype != np.uint8 or images.shape[1:] != (resolution, resolution, 3):
            raise FractalError(
                f"{file} has images {images.dtype} {images.shape[1:]}, the data set "
                f"uint8 {(resolution, resolution, 3)}: give the file of the same resolution"
            )
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    return PublishedStatistics(f"ADM: {file.name}", mean, covariance, images)


def _require_statistics(file: Path, mean: np.ndarray, covariance: np.ndarray) -> None:
    if mean.shape != (WIDTH,) or covariance.shape != (WIDTH, WIDTH):
        raise _unfit(file, f"mu has shape {mean.shape}, sigma {covariance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise _unfit(file, "there are NaN or infinite numbers")
    if np.abs(covariance - covariance.T).max() > _SYMMETRIC * np.abs(covariance).max():
        raise _unfit(file, "sigma is not symmetric")
    if np.linalg.eigvalsh(covariance)[0] < -_NEGATIVE * max(np.trace(covariance), 0.0):
        raise _unfit(file, "sigma has negative eigenvalues, so it is no covariance")


def _unfit(file: Path, found: str) -> FractalError:
    return FractalError(
        f"{file} is not ADM's reference file: {found}; expected finite mu ({WIDTH},) and sigma "
        f"({WIDTH}, {WIDTH}) of Inception's pool_3, such as in adm_in64_stats.npz"
    )
