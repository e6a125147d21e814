"""Flow `nightly-evaluation`: evaluate the new candidates of all sizes, within a night.

As a command: `python -m flows.nightly`. Decided here: previews of all sizes come first, so that
each size has a number in the morning. A size whose preview fails gets no full evaluation. A
candidate is finished when it is evaluated and compared with the champion. If an evaluation fails,
the others still run and the table is written; then the flow run ends as Failed, which notifies a
person. An evaluation that had not enough time, or that another process runs, is no failure.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.blocks import notifications  # noqa: F401  (The import registers its blocks.)
from prefect.blocks.core import Block

from fractal_model.common.console import say
from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.locks import LockHeldError, hold_lock
from fractal_model.config.params import DEFAULT_FILE, Params, load_params
from fractal_model.data.manifest import read_manifest
from fractal_model.evaluation.night_budget import fits_budget, forecast_seconds
from fractal_model.evaluation.protocol import Protocol
from fractal_model.metrics.names import FID, NLL
from fractal_model.tracking import champions, nights, registry, store

from .automations import with_tags_of_parent
from .command import flow_command, run_command
from .evaluate import evaluate_fractal, protocol_of
from .failures import report_failure
from .run_names import name_run

T = TypeVar("T")
Outcome = Literal["evaluated", "up to date", "skipped", "did not fit", "failed"]


@dataclass(frozen=True)
class Row:
    """One row of the night's table: what happened to the candidate of a size."""

    size: str
    version: str
    evaluation: str
    """Kind of evaluation: preview, full, or "" if none was due."""
    outcome: Outcome
    detail: str
    """Metrics of the evaluation, or the reason for the outcome."""
    minutes: float = 0.0


@dataclass(frozen=True)
class Due:
    """A candidate that must still be evaluated, or compared with the champion, under the current
    protocol."""

    size: str
    version: str
    full: Protocol
    """Protocol of the full evaluation."""
    preview: Protocol | None
    """Protocol of the preview; None if the version has a preview or a full evaluation already."""
    waits_since: str | None
    """Time (UTC) since which the size waits for a night with enough time; None if it does not
    wait."""


@flow(name="nightly-evaluation", flow_run_name=name_run("nightly"))
@report_failure
def nightly_evaluation(
    params_file: Path = DEFAULT_FILE, set: list[str] | None = None
) -> list[dict[str, object]]:
    """Evaluate every registered size whose candidate has no evaluation under the current protocol.

    Previews come first, then full evaluations, within the hours that params.yaml allows. A size
    that got no time comes first the next night. At the end, a table is written and the configured
    notification block sends a message. The run fails if an evaluation or this message failed.

    Args:
        params_file: Path of the settings file, relative to the project's folder; its section
            `nightly` has the budget of hours and the notification block.
        set: Settings that replace those of the file, such as nightly.budget_hours=2.
    """
    params = load_params(params_file, set)
    store.connect(params.paths.outputs)
    with hold_lock(params.paths.outputs / "nightly.lock"):
        rows = Night(params, params_file, set).run()
    table = [asdict(row) for row in rows]
    create_table_artifact(key="nightly-evaluation", table=table, description=summary(rows))
    say(f"nightly evaluation: {summary(rows)}")
    unsent = send_message(params.nightly.notification_block, rows)
    failed = [f"{row.size}: {row.detail}" for row in rows if row.outcome == "failed"]
    if failed or unsent:
        raise FractalError(f"nightly evaluation: {'; '.join([*failed, *unsent])}")
    return table


class Night:
    """The evaluations of all sizes in one night, within the budget of hours."""

    def __init__(self, params: Params, params_file: Path, overrides: list[str] | None) -> None:
        self._params = params
        self._params_file, self._overrides = params_file, overrides
        self._deadline = time.monotonic() + params.nightly.budget_seconds

    def run(self) -> list[Row]:
        """Evaluate all due candidates. Return a row for each preview, for each full evaluation, and
        for each size that needs no evaluation or cannot have one."""
        plan = [_run_or_report(partial(self._find_due, size), size) for size in registry.sizes()]
        rows = [row for row in plan if isinstance(row, Row)]
        due = [candidate for candidate in plan if isinstance(candidate, Due)]
        # Sizes that wait come first, beginning with the one that waits longest.
        due.sort(key=lambda candidate: (candidate.waits_since is None, candidate.waits_since or ""))
        previews = [self._evaluate(c, "preview", c.preview) for c in due if c.preview]
        failed = {row.size for row in previews if row.outcome == "failed"}
        fulls = [self._evaluate(c, "full", c.full) for c in due if c.size not in failed]
        return [*previews, *fulls, *rows]

    def _find_due(self, size: str) -> Due | Row | None:
        """Return the candidate of a size if it must be evaluated or compared; else a row with the
        reason, or None if the size has no candidate."""
        version = registry.aliased_version(size, registry.CANDIDATE)
        if version is None:
            return None
        if size not in self._params.models:
            return Row(size, version, "", "skipped", "not in params.yaml")
        try:
            read_manifest(self._params.dataset_folder(self._params.training[size].dataset))
        except FractalError as error:
            return Row(size, version, "", "skipped", one_line(error))
        full, preview = (
            protocol_of(self._params, size, is_preview) for is_preview in (False, True)
        )
        run_id = registry.find_evaluation(size, version, full.fingerprint)
        if run_id and champions.is_decided(size, version, full.fingerprint):
            return Row(size, version, "", "up to date", f"protocol {full.fingerprint[:12]}")
        run_id = run_id or registry.find_evaluation(size, version, preview.fingerprint)
        return Due(size, version, full, None if run_id else preview, nights.waits_since(size))

    def _evaluate(self, due: Due, kind: str, protocol: Protocol) -> Row:
        work = partial(self._evaluate_if_it_fits, due, kind, protocol)
        return _run_or_report(work, due.size, due.version, kind)

    def _evaluate_if_it_fits(self, due: Due, kind: str, protocol: Protocol) -> Row:
        row, is_preview = (due.size, due.version, kind), kind == "preview"
        started = time.monotonic()
        seconds_left, forecast = self._deadline - started, self._forecast(due, protocol)
        if not fits_budget(seconds_left, forecast, self._params.nightly.budget_seconds):
            nights.start_waiting(due.size)
            needed = "" if forecast is None else f"about {forecast / 3600:.2f} h needed, "
            rest = f"{max(0.0, seconds_left) / 3600:.2f} h left: comes first next night"
            return Row(*row, "did not fit", needed + rest)
        with with_tags_of_parent():
            metrics = evaluate_fractal(
                size=due.size,
                model=f"models:/{registry.model_name(due.size)}/{due.version}",
                preview=is_preview,
                wait=False,
                params_file=self._params_file,
                set=self._overrides,
            )
        if not is_preview:
            nights.end_waiting(due.size)
        labels = [protocol.label(name) for name in (FID, NLL)]
        numbers = [f"{name} {metrics[name]:.4g}" for name in labels if name in metrics]
        return Row(*row, "evaluated", ", ".join(numbers), _minutes(started))

    def _forecast(self, due: Due, protocol: Protocol) -> float | None:
        """Expected seconds of an evaluation; None if the size was never evaluated. A full
        evaluation is compared with the champion's numbers. If these are missing, the time to
        evaluate the champion is added."""
        is_full = protocol == due.full
        champion = registry.aliased_version(due.size, registry.CHAMPION) if is_full else None
        versions = {version for version in (due.version, champion) if version is not None}
        key = protocol.fingerprint
        missing = [v for v in versions if not registry.find_evaluation(due.size, v, key)]
        if not missing:
            return 0.0
        dataset = self._params.training[due.size].dataset
        experiment_id = store.get_or_create_experiment(dataset, self._params.paths.outputs)
        earlier = nights.earlier_evaluations(experiment_id, due.size)
        seconds = forecast_seconds(earlier, protocol.samples)
        return None if seconds is None else seconds * len(missing)


def _run_or_report(work: Callable[[], T], size: str, version: str = "", kind: str = "") -> T | Row:
    """Call `work` and return its result. If it raises an exception, return a row with the reason,
    so that the night continues with the other sizes."""
    started = time.monotonic()
    try:
        return work()
    except Exception as error:
        if not isinstance(error, FractalError):
            get_run_logger().exception("the evaluation of %s failed", size)
        outcome: Outcome = "skipped" if isinstance(error, LockHeldError) else "failed"
        return Row(size, version, kind, outcome, one_line(error), _minutes(started))


def _minutes(started: float) -> float:
    return round((time.monotonic() - started) / 60, 2)


def summary(rows: list[Row]) -> str:
    """Number of rows with each outcome, for example `2 evaluated, 1 failed`."""
    counts = Counter(row.outcome for row in rows)
    return ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) or "nothing is registered"


def send_message(block: str | None, rows: list[Row]) -> list[str]:
    """Send the night's rows through a notification block, if there is one. Return an empty list, or
    a list with the reason if sending fails."""
    if block is None:
        return []
    lines = [f"{r.size} {r.version} {r.evaluation}: {r.outcome}, {r.detail}" for r in rows]
    try:
        subject = f"Nightly evaluation: {summary(rows)}"
        # Prefect annotates the coroutine that a call inside an event loop would return.
        Block.load(block).notify("\n".join(lines), subject=subject)  # type: ignore[union-attr]
    except Exception as error:  # Each notification service has its own exceptions.
        return [f"the notification block {block} sent no message ({one_line(error)})"]
    return []


command = flow_command(nightly_evaluation, key="evaluations")


def main() -> None:
    run_command(command)


if __name__ == "__main__":
    main()
