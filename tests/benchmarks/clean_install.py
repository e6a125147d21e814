"""Install the wheel without extras in a new environment, and measure and use it: `make test-wheel`.

It downloads torch. It prints the packages, their size and the seconds, and fails if a command fails
there or a library of an extra is there.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

from fractal_model.common.console import say
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.model.pretrained import export_folder
from tests.support import REPOSITORY, tiny_model
from tests.support.wheel import NOT_IN_THE_CORE, build_wheel

OF_TORCH = ("torch", "nvidia", "triton", "cuda", "sympy", "networkx", "mpmath", "functorch")
"""Beginnings of the names of torch and of what only torch needs."""
USE = """
from importlib.util import find_spec
from fractal_model import FractalPipeline
pipe = FractalPipeline.from_pretrained("exported", device="cpu")
assert len(pipe(classes=[1], seed=0)) == 1
others = [*filter(find_spec, {libraries})]
assert not others, others
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        wheel, began = build_wheel(folder / "build"), time.monotonic()
        venv.create(folder / "environment", with_pip=True)
        python = folder / "environment" / "bin" / "python"
        constraints = REPOSITORY / "constraints.txt"
        run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel)
        say(f"installed in {time.monotonic() - began:.0f} s")
        report(sizes(next((folder / "environment" / "lib").glob("*/site-packages"))))
        model = tiny_model("mar")
        sampling = SamplingConfig(guidance=2.0, logit_scale=1.0, iterations=(2, 2))
        model.serving = ServingConfig(weights="model", sampling=sampling)
        export_folder(model, folder / "exported")
        fractal = python.with_name("fractal")
        run(fractal, "sample", "--model", "exported", "--n", "2", "--out", "x.png", cwd=folder)
        run(python, "-c", USE.format(libraries=NOT_IN_THE_CORE), cwd=folder)
        say("sampled with the command and the pipeline; no library of an extra is there")


def run(*words: str | Path, cwd: Path = REPOSITORY) -> None:
    """Run a command where PYTHONPATH does not lead to another package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([str(word) for word in words], cwd=cwd, env=environment, check=True)


def sizes(packages: Path) -> Iterator[tuple[str, float]]:
    """Yield each top-level entry of the folder `packages` with its size in MB."""
    for entry in sorted(packages.iterdir()):
        files = entry.rglob("*") if entry.is_dir() else [entry]
        yield entry.name, sum(file.lstat().st_size for file in files if file.is_file()) / 1e6


def report(entries: Iterator[tuple[str, float]]) -> None:
    listed = dict(entries)
    count = sum(name.endswith(".dist-info") for name in listed)
    of_torch = sum(size for name, size in listed.items() if name.startswith(OF_TORCH))
    pip_size = sum(size for name, size in listed.items() if name.startswith("pip"))
    rest = sum(listed.values()) - of_torch - pip_size
    say(
        f"{count - 1} packages; torch and its CUDA libraries {of_torch:.0f} MB, "
        f"the rest {rest:.0f} MB"
    )
    for name, size in sorted(listed.items(), key=lambda item: -item[1])[:15]:
        say(f"  {name}: {size:.0f} MB")


if __name__ == "__main__":
    main()
