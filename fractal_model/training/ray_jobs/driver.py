"""The driver of one training on a Ray cluster, in this process or as a Ray job.

The job's command is `python -m fractal_model.training.ray_jobs.driver`; FRACTAL_TRAINING_JOB has
the TrainingJob as JSON. The job prints each report, and at the end the address of the checkpoint to
register or an error, as lines of JSON behind a marker. The driver itself sends metrics to MLflow,
through the spool, so that they arrive even if nobody follows the job.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext

from fractal_model.common.console import errors_on_one_line
from fractal_model.common.errors import FractalError
from fractal_model.common.logs import keep_secrets_out_of_logs
from fractal_model.parallel.ray_cluster import ray_cluster
from fractal_model.tracking.spool import MetricSpool
from fractal_model.tracking.store import use_store
from fractal_model.tracking.training_history import last_position, report_values
from fractal_model.tracking.validation_log import ValidationLog
from fractal_model.training.job import (
    Report,
    TrainingJob,
    ValidationPoint,
    compare_point,
    describe_point,
)
from fractal_model.training.ray_train.machines import watch_machines
from fractal_model.training.ray_train.run import run_training
from fractal_model.training.ray_train.validation_points import ValidationPoints
from fractal_model.training.watch import Watch

JOB_VARIABLE = "FRACTAL_TRAINING_JOB"
MARKER = "FRACTAL "
"""First characters of an output line that goes on with JSON. Other lines are text for people."""
logger = logging.getLogger("fractal.training")


def drive(
    job: TrainingJob,
    *,
    on_report: Callable[[Report], None],
    on_line: Callable[[str], None],
) -> str:
    """Train to the end; return the folder or address of the checkpoint to register.

    `on_report` is called with each report, `on_line` with a line of text about each new validation
    point. FractalError: training failed.
    """
    use_store(job.tracking_uri)
    earlier = _earlier_points(job)
    with (
        MetricSpool(job.local / "metrics" / job.run_id, job.run_id) as spool,
        ValidationLog(job.run_id, spool) as validation,
        ray_cluster(cpus=job.recipe.cpus),
    ):
        log = _ReportLog(job, spool, on_report)

        def handle_point(point: ValidationPoint, grids: dict[str, bytes]) -> None:
            validation.add(point.position, point.metrics, grids)
            if point.position not in earlier:
                comparison = compare_point(point, job.reference, job.score)
                on_line(f"{job.size}, {describe_point(point, job.score)}{comparison}")

        # In a cluster of this process's own, the flow's MLflow run measures the only machine.
        is_own = not os.environ.get("RAY_ADDRESS")
        with nullcontext() if is_own else watch_machines(log.add_machine_metrics):
            return run_training(job, on_report=log.add, on_point=handle_point)


class _ReportLog:
    """Logs reports and system metrics to the spool, with the number of images seen as step, and
    hands reports on to `on_report`."""

    def __init__(
        self, job: TrainingJob, spool: MetricSpool, on_report: Callable[[Report], None]
    ) -> None:
        self._size, self._spool, self._on_report = job.size, spool, on_report
        self._watch = Watch(job.reference)
        # The spool has steps that MLflow does not have yet.
        self._logged_step = max(last_position(job.run_id), *spool.steps_of("epoch"), -1)

    def add(self, report: Report) -> None:
        more_metrics: dict[str, float] = {}
        warnings = [report.note] if report.note else []
        if report.loss is not None:
            more_metrics, new_warnings = self._watch.examine(report)
            warnings = new_warnings + warnings
        excess = more_metrics.get("loss_over_reference")
        report = report.model_copy(update={"note": None, "loss_over_reference": excess})
        values, step = report_values({**report.model_dump(exclude_none=True), **more_metrics})
        if step > self._logged_step:  # A step that workers repeat was logged before.
            self._spool.log(values, step=step)
            self._logged_step = step
        for warning in warnings:
            logger.warning("%s, epoch %.2f: %s", self._size, report.epoch, warning)
        self._on_report(report)

    def add_machine_metrics(self, values: dict[str, float]) -> None:
        if values:
            self._spool.log(values, step=max(self._logged_step, 0))


def _earlier_points(job: TrainingJob) -> set[int]:
    """Positions of the points that an earlier process has completed, and printed."""
    points = ValidationPoints.of_run(job.storage, job.name)
    try:
        return {position for position in points.positions() if points.read(position) is not None}
    except OSError:  # The workers will say so if the storage fails.
        return set()


def _print_line(text: str) -> None:
    # One call: reports are printed by another thread.
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _print_json(**content: object) -> None:
    _print_line(f"{MARKER}{json.dumps(content)}")


def main() -> None:
    """Run the training that FRACTAL_TRAINING_JOB describes. FractalError: the variable is not set,
    or training failed."""
    keep_secrets_out_of_logs()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    if JOB_VARIABLE not in os.environ:
        raise FractalError(f"{JOB_VARIABLE} is not set: start training with `fractal train`")
    job = TrainingJob.model_validate_json(os.environ[JOB_VARIABLE])
    try:
        checkpoint = drive(
            job,
            on_report=lambda report: _print_json(report=report.model_dump(exclude_none=True)),
            on_line=_print_line,
        )
    except FractalError as error:
        _print_json(error=str(error))
        raise
    _print_json(checkpoint=checkpoint)


if __name__ == "__main__":
    with errors_on_one_line():
        main()
