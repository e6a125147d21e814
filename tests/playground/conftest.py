"""Two tiny models, exported, and a studio that offers them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.model.pretrained import export_folder
from fractal_model.playground.studio import Studio
from tests.support import tiny_model

NAMES = ("cat", "dog", "cow", "ant")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of a MAR model with class names and of an AR model without."""
    places = []
    for kind, guidance, names in (("mar", 2.0, NAMES), ("ar", 1.0, ())):
        model = tiny_model(kind)
        model.config = model.config.model_copy(update={"class_names": names})
        iterations = (3, 2) if kind == "mar" else (4, 4)
        sampling = SamplingConfig(guidance=guidance, logit_scale=1.1, iterations=iterations)
        model.serving = ServingConfig(weights="model", sampling=sampling)
        places.append(tmp_path_factory.mktemp("exported") / kind)
        export_folder(model, places[-1])
    return str(places[0]), str(places[1])


@pytest.fixture
def studio(exported: tuple[str, str]) -> Studio:
    return Studio(exported, None)


@pytest.fixture
def folders(exported: tuple[str, str]) -> list[Path]:
    return [Path(place) for place in exported]
