"""Prepare the registered mini ImageNet, and read the results."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image

from fractal_model.config.data import PreparationConfig
from fractal_model.data.adm_crop import center_crop
from fractal_model.data.manifest import Manifest
from fractal_model.data.preparation import prepare_source
from fractal_model.data.shard_job import build_in_processes

SIDE = 16


def prepare(data: Path, processes: int = 1, share: float = 0.0, **changes: object) -> Manifest:
    options = {"source": "imagenet", "resolution": SIDE, **changes}
    return prepare_source(
        data,
        "imagenet16",
        settings=PreparationConfig(max_quarantined_share=share, processes=processes),
        run_jobs=lambda jobs: build_in_processes(jobs, processes),
        **options,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files in `folder` by their paths."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def expected_crop(content: bytes) -> np.ndarray:
    """The pixels that preparation makes of an image file: (16, 16, 3) uint8."""
    with PIL.Image.open(io.BytesIO(content)) as image:
        return np.asarray(center_crop(image.convert("RGB"), SIDE))
