"""The five commands of the README make a model of a folder of pictures."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from fractal_model.config.params import load_params
from tests.support import REPOSITORY

HEADING = "## Your own pictures, in five commands"
SIDE = 16
REPLACED = {"DIR": "pictures", "64": str(SIDE)}
"""The folder of the test, and a resolution at which a training takes seconds."""


def five_commands() -> list[list[str]]:
    """The words of each command under the README's heading."""
    section = (REPOSITORY / "README.md").read_text().split(HEADING)[1]
    block = re.search(r"^```\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


def draw_pictures(folder: Path) -> None:
    """Transparent PNG files of three classes, 20 each."""
    dice = random.Random(0)
    for kind in ("ellipse", "rectangle", "line"):
        (folder / kind).mkdir(parents=True)
        for number in range(20):
            picture = Image.new("RGBA", (SIDE, SIDE))
            box = [dice.randrange(1, 6), dice.randrange(1, 6), dice.randrange(9, 15), 14]
            colour = (dice.randrange(200), dice.randrange(200), 90, 255)
            getattr(ImageDraw.Draw(picture), kind)(box, fill=colour)
            picture.save(folder / kind / f"{number}.png")


def test_the_readme_has_five_commands():
    starts = [words[:3] for words in five_commands()]
    assert starts[:3] == [
        ["fractal", "data", "register"],
        ["dvc", "repro", "reference"],
        ["fractal", "size", "new"],
    ]
    assert len(starts) == 5


@pytest.mark.slow
def test_the_five_commands_of_the_readme(tmp_path):
    shutil.copytree(REPOSITORY / "fractal_model", tmp_path / "fractal_model")
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "registered.yaml").write_text("registered: {}\n")
    draw_pictures(tmp_path / "pictures")
    few_features = {"{digits: 200}": "{digits: 8}", "feature_sample: 10000": "feature_sample: 60"}
    settings = (REPOSITORY / "params.yaml").read_text()
    for found, replacement in few_features.items():
        assert found in settings
        settings = settings.replace(found, replacement)
    (tmp_path / "params.yaml").write_text(settings)
    run(tmp_path, ["dvc", "init", "--no-scm", "--quiet"])
    outputs = []
    for words in five_commands():
        words = [REPLACED.get(word, word) for word in words]
        words += ["--budget", "1m"] if "size" in words else []
        outputs.append(run(tmp_path, words))
    assert "registered fractal-flowers version 1" in outputs[3]
    assert "│ fid " in outputs[4] and "│ nll_bits_per_dim " in outputs[4]
    size = load_params(tmp_path / "params.yaml").size("flowers")
    assert (size.model.image_size, size.model.num_classes) == (SIDE, 3)


def run(folder: Path, words: list[str]) -> str:
    other = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
    environment = other | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "PREFECT_HOME": str(folder / "prefect"),
        "DVC_NO_ANALYTICS": "1",
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
