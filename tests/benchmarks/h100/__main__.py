"""Measure training and sampling on one GPU within some minutes, and write a JSON file.

    python -m tests.benchmarks.h100 --minutes 8 --out results.json [--published FOLDER]

The file is written after each row, and a row that it has is not measured again unless it failed:
start the command again to go on. `--only TEXT` measures the rows with this text in their names.
It needs torch and the packages of the model alone: no Ray, Prefect or MLflow. pytest does not
collect this program.
"""

from __future__ import annotations

import gc
import json
import platform
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from fractal_model.common.console import errors_on_one_line, say
from fractal_model.common.devices import compute_device
from fractal_model.common.errors import FractalError
from fractal_model.common.files import atomic_file
from fractal_model.config.params import DEFAULT_FILE, load_params
from tests.benchmarks.h100.rows import LONGEST, Result, Row, TooLong, all_rows, time_limit

_ROOM = 5.0
"""Seconds that must be left to begin a row."""


def describe_machine(device: torch.device) -> Result:
    """The GPU, or the CPU's kind, and the versions that decide the speed."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


def measure_row(row: Row, device: torch.device, seconds: float) -> Result:
    """Measure a row within some seconds. What goes wrong in it is its result."""
    start = time.perf_counter()
    try:
        with time_limit(seconds):
            result = row.measure(device)
    except (TooLong, Exception) as error:  # whatever it is, the other rows are to be measured
        result = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    torch.compiler.reset()
    return {**result, "seconds_in_all": time.perf_counter() - start}


def read_results(out: Path, machine: Result) -> dict[str, Result]:
    """The rows that the file has. FractalError: they are of another machine."""
    if not out.is_file():
        return {}
    earlier = json.loads(out.read_text())
    if earlier["machine"] != machine:
        raise FractalError(
            f"{out} is of {earlier['machine']}, this is {machine}: write to another file"
        )
    rows: dict[str, Result] = earlier["rows"]
    return rows


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="Minutes for all rows.")] = 8.0,
    out: Annotated[Path, typer.Option(help="The JSON file.")] = Path("outputs/h100.json"),
    published: Annotated[
        Path | None, typer.Option(help="A folder with the published code, to measure beside.")
    ] = None,
    only: Annotated[str, typer.Option(help="Measure the rows with this text alone.")] = "",
    params: Annotated[Path, typer.Option(help="The file with the sizes.")] = DEFAULT_FILE,
) -> None:
    end = time.monotonic() + 60 * minutes
    device = compute_device()
    machine = describe_machine(device)
    results = read_results(out, machine)
    rows = [row for row in all_rows(load_params(params), published) if only in row.name]
    if not rows:
        names = "; ".join(row.name for row in all_rows(load_params(params), published))
        raise FractalError(f"no row has {only!r} in its name: the rows are {names}")
    out.parent.mkdir(parents=True, exist_ok=True)
    for row in rows:
        left = end - time.monotonic()
        if "error" not in results.get(row.name, {"error": ""}) or left < _ROOM:
            continue
        result = measure_row(row, device, min(left, LONGEST))
        if "error" in result and time.monotonic() >= end:
            break  # It was cut off with the minutes, and is measured when the command goes on.
        results[row.name] = result
        with atomic_file(out) as partial:
            partial.write_text(json.dumps({"machine": machine, "rows": results}, indent=1) + "\n")
        numbers = {key: value for key, value in result.items() if isinstance(value, float | str)}
        say(f"{row.name}: {json.dumps(numbers)}")
    measured = [row for row in rows if "error" not in results.get(row.name, {"error": ""})]
    say(f"{len(measured)} of {len(rows)} rows measured, in {out}")


if __name__ == "__main__":
    with errors_on_one_line():
        typer.run(main)
