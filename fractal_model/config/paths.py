"""The section `paths` of params.yaml: folders of data and results."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from fractal_model.common.strict import NotEmpty, StrictModel


def _require_folder(place: object) -> object:
    if isinstance(place, str) and not place.strip():
        raise ValueError("give a folder, such as data")
    if "://" in str(place):
        raise ValueError(
            "give a folder; addresses are for prepared data sets, in paths.remote, and for "
            "checkpoints, in paths.training"
        )
    return place


Folder = Annotated[Path, BeforeValidator(_require_folder)]


class PathsConfig(StrictModel):
    """Folders of data and results. `load_params` makes relative paths and `~` absolute."""

    data: Folder
    """Folder of prepared data sets, one folder each, relative to params.yaml."""
    outputs: Folder
    """Folder of training runs, MLflow's default store and pictures, relative to params.yaml."""
    remote: Annotated[dict[str, str], Field(default_factory=dict)]
    """Addresses of data sets in an object store, such as {imagenet64: s3://bucket/imagenet64}."""
    training: NotEmpty | None = None
    """Place where training stores checkpoints: a folder that all machines share, or an address such
    as s3://bucket/training; null: a folder in `outputs`."""
