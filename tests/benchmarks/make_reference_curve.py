"""Make the reference curve of a size again, from finished trainings with several seeds.

    fractal train --size digits --seed 1     # for each seed
    python -m tests.benchmarks.make_reference_curve --size digits --seeds 0,1,2

The trainings are found in MLflow by their fingerprints: they must have the settings of params.yaml,
apart from the seed. Without a second seed there is no spread, and no difference is called too
large. The result replaces the file in fractal_model/reporting/reference_curves/.
pytest does not collect this program.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from mlflow.entities import Run

from fractal_model.common.console import errors_on_one_line, say
from fractal_model.common.errors import FractalError
from fractal_model.common.plurals import count_of
from fractal_model.config.params import DEFAULT_FILE, load_params
from fractal_model.reporting import shipped_curves
from fractal_model.tracking import store, training_history
from fractal_model.tracking.tags import FINGERPRINT_TAG, KIND_TAG
from fractal_model.training import launch
from fractal_model.training.find_reference import curve_settings

FOLDER = Path(shipped_curves.__file__).parent / "reference_curves"


def find_training(experiment: str, fingerprint: str, size: str, seed: int) -> Run:
    """Return the finished training with this fingerprint. FractalError: there is none."""
    found = store.find_runs([experiment], {FINGERPRINT_TAG: fingerprint, KIND_TAG: "train"})
    finished = [run for run in found if run.info.status == "FINISHED"]
    if not finished:
        raise FractalError(
            f"no finished training has the settings of params.yaml and the seed {seed}: run "
            f"`fractal train --size {size} --seed {seed}` first"
        )
    return finished[0]


def make(
    size: Annotated[str, typer.Option(help="Name of the size in params.yaml.")] = "digits",
    seeds: Annotated[str, typer.Option(help="Seeds of the trainings.")] = "0,1,2",
    params: Annotated[Path, typer.Option(help="Path of the settings file.")] = DEFAULT_FILE,
) -> None:
    """Write the reference curve of a size from its finished trainings."""
    settings, numbers = load_params(params), [int(seed) for seed in seeds.split(",")]
    store.connect(settings.paths.outputs)
    curves, fingerprints = [], []
    for seed in numbers:
        changed, manifest = launch.load_size_and_manifest(settings, size, seed=seed)
        experiment = store.get_or_create_experiment(
            changed.training.dataset, settings.paths.outputs
        )
        fingerprints.append(launch.run_fingerprint(changed, manifest))
        run_id = find_training(experiment, fingerprints[-1], size, seed).info.run_id
        curves.append(
            {metric: training_history.curve(run_id, metric) for metric in shipped_curves.COLUMNS}
        )
    origin = shipped_curves.Origin(
        size=size,
        fingerprint=fingerprints[0],
        dataset_checksum=manifest.checksum,
        seeds=tuple(numbers),
        settings=curve_settings(changed),
    )
    file = FOLDER / shipped_curves.curve_file_name(size)
    file.write_text(shipped_curves.format_curve(origin, curves), encoding="utf-8")
    say(f"{file}: {count_of(len(numbers), 'training')}")


if __name__ == "__main__":
    with errors_on_one_line():
        typer.run(make)
