"""A tiny model, a tiny data set and their settings, for tests of commands."""

from __future__ import annotations

import pytest
import yaml

from tests.support import KINDS, REPOSITORY
from tests.support.tiny_files import TINY, Workplace, save_images, save_tiny


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("a workplace")
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    content["models"]["digits"].update(
        TINY, patch_sizes=list(KINDS["mar"]["patch_sizes"]), num_classes=4
    )
    content["sampling"]["digits"]["iterations"] = [4, 4]
    params = folder / "params.yaml"
    params.write_text(yaml.safe_dump(content))
    return Workplace(
        folder, save_tiny(folder / "model"), save_images(folder / "data" / "tiny"), params
    )
