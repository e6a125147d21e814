"""Time single requests at once against one request for as many images, on MLflow's server.

    python -m tests.benchmarks.serving [--model models:/fractal-digits@champion] [--count 8]

Starts the server, and measures in turn one request for one image, `count` such requests at once,
and one request for `count` images. Prints the medians and the ratio of the last two. pytest does
not collect this program.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Annotated

import httpx
import typer

from fractal_model.common.console import errors_on_one_line, say
from fractal_model.common.errors import FractalError
from fractal_model.config.params_source import ParamsSource
from fractal_model.tracking import store
from tests.support import REPOSITORY
from tests.support.ports import free_ports


def request(address: str, seeds: Sequence[int]) -> list[str]:
    """Ask for one image for each seed, of changing classes."""
    rows = [{"class": seed % 10, "seed": seed} for seed in seeds]
    answer = httpx.post(
        f"{address}/invocations", json={"dataframe_records": rows}, timeout=600, trust_env=False
    )
    answer.raise_for_status()
    return answer.json()["predictions"]


def measure(address: str, count: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of each way of asking. FractalError: the images differ."""
    seconds: dict[str, list[float]] = {}

    def timed(name: str, ask):
        start = time.perf_counter()
        images = ask()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        return images

    with ThreadPoolExecutor(count) as pool:
        for number in range(repeats + 1):
            seeds = range(number * count, (number + 1) * count)
            timed("one image", lambda seeds=seeds: request(address, seeds[:1]))
            single = timed(
                f"{count} requests at once",
                lambda seeds=seeds: [*pool.map(lambda seed: request(address, [seed])[0], seeds)],
            )
            if single != timed("one request", lambda seeds=seeds: request(address, seeds)):
                raise FractalError("the images of single requests are others: report this")
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}  # [0] warms up


def main(
    model: Annotated[str, typer.Option(help="Registered model.")] = (
        "models:/fractal-digits@champion"
    ),
    count: Annotated[int, typer.Option(help="Number of requests at once.")] = 8,
    repeats: Annotated[int, typer.Option(help="Measurements of each way.")] = 5,
) -> None:
    """Time single requests at once against one request for as many images."""
    with errors_on_one_line():
        uri = store.connect(ParamsSource(REPOSITORY / "params.yaml").load().paths.outputs)
        port = free_ports(("server",))["server"]
        options = ["--env-manager", "local", "--port", str(port)]
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, *options]
        server = subprocess.Popen(
            command,
            env=os.environ | {"MLFLOW_TRACKING_URI": uri},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
            while True:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise FractalError(f"the server of {model} did not start: run `make demo`")
                try:
                    httpx.get(f"{address}/ping", trust_env=False)
                    break
                except httpx.TransportError:
                    time.sleep(0.5)
            result = measure(address, count, repeats)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)
        for name, value in result.items():
            say(f"{name}: {value:.3f} s")
        say(f"ratio: {result[f'{count} requests at once'] / result['one request']:.2f}")


if __name__ == "__main__":
    typer.run(main)
