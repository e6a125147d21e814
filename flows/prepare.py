"""Flow `prepare-data`: prepare a data set's images, its features for FID, and its report.

As a command: `python -m flows.prepare --dataset digits`. It does what the data set's
stages in dvc.yaml do, and continues where an earlier run stopped.

With RAY_ADDRESS=http://… a Ray job of that cluster prepares a registered data set, and this process
follows the job. With another address, this process spreads the work over that cluster. Without an
address, it spreads the work over the cores of this machine. All machines of a cluster need the
source and the data folder at the same paths.
"""

import contextlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from fractal_model.common.console import say
from fractal_model.common.errors import FractalError
from fractal_model.config.data import DIGITS
from fractal_model.config.params import DEFAULT_FILE, load_params
from fractal_model.data.datasets import prepare_dataset, require_dataset
from fractal_model.data.report import report_dataset
from fractal_model.metrics.dataset_reference import extract_reference
from fractal_model.parallel.ray_shards import build_shards
from fractal_model.training.ray_jobs.jobs import follow_job
from fractal_model.training.ray_jobs.log import JobLog
from fractal_model.training.ray_jobs.server import JobsServer

from .command import flow_command, run_command
from .failures import report_failure
from .run_names import name_run

STAGES = ("prepare", "reference", "report")
"""Subcommands of `fractal data` that a Ray job runs, in this order."""
prepare_images = task(name="images", cache_policy=NO_CACHE)(prepare_dataset)
extract_features = task(name="reference-features", cache_policy=NO_CACHE)(extract_reference)
write_report = task(name="report", cache_policy=NO_CACHE)(report_dataset)


@flow(name="prepare-data", flow_run_name=name_run("prepare"))
@report_failure
def prepare_data(
    dataset: str = "digits", params_file: Path = DEFAULT_FILE, set: list[str] | None = None
) -> None:
    """Prepare a data set: its images, the features that FID compares with, and its report.

    Args:
        dataset: Name of the data set: digits, or one that `fractal data register` has added.
        params_file: Path of the settings file.
        set: Settings that replace those of the file, such as training.digits.epochs=5.
    """
    params = load_params(params_file, set)
    require_dataset(params, dataset)
    address = os.environ.get("RAY_ADDRESS", "")
    overrides = [f"--set={text}" for text in set or ()]
    if dataset != DIGITS and address.startswith(("http://", "https://")):
        prepare_on_cluster(address, dataset, ["--params", str(params_file.resolve()), *overrides])
    else:
        prepare_images(params, dataset, build_shards)
        extract_features(params, dataset)
        write_report(params, dataset)


@task(name="ray-job", cache_policy=NO_CACHE)
def prepare_on_cluster(address: str, dataset: str, options: Sequence[str]) -> None:
    """Prepare a data set as one Ray job of the cluster at `address`. `options` follow each command
    of the job. Cancelling the flow stops the job. FractalError: the job failed; the message ends
    with the last line of the job's log."""
    server = JobsServer(address)
    name = f"prepare-{dataset}-{uuid4().hex[:6]}"
    words = shlex.join([dataset, *options])
    stages = (f"{server.interpreter()} -m fractal_model data {stage} {words}" for stage in STAGES)
    server.submit(name, entrypoint=" && ".join(stages), metadata={"dataset": dataset})
    log = JobLog(on_report=lambda report: None, on_line=say)
    try:
        status = follow_job(server, name, log).status.value
    except BaseException as error:
        if not isinstance(error, Exception):
            with contextlib.suppress(FractalError):  # The original exception matters more.
                server.stop(name)
        raise
    full_log = ""
    with contextlib.suppress(FractalError):  # The log may be lost with its machine.
        full_log = server.log(name)
    log.complete(full_log)
    if status != "SUCCEEDED":
        lines = full_log.strip().splitlines() or ["its log is empty"]
        raise FractalError(
            f"the Ray job {name} ended as {status}: {lines[-1].removeprefix('error: ')}"
        )


command = flow_command(prepare_data, check=require_dataset)


def main() -> None:
    run_command(command)


if __name__ == "__main__":
    main()
