"""Flow `nightly-evaluation`: evaluate what is new of all sizes, within a night.

As a command: `python -m flows.nightly`. Decided here: previews of all sizes come first, so that the
morning has a number of each; a size whose preview fails gets no full evaluation; a candidate is
done once it is evaluated and compared with the champion; the flow run ends as Failed when an
evaluation did, after all others are done and the table is written, since that state is what wakes a
person; what did not fit the time, or is evaluated by another process, is no failure.
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
from prefect.blocks import notifications  # noqa: F401  (so that its blocks can be loaded)
from prefect.blocks.core import Block

from flows.command import run_flow
from flows.evaluate import evaluate_fractal, protocol_of
from flows.failures import report_failure
from fractal_model.common.console import say
from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.locks import LockHeldError, hold_lock
from fractal_model.config.params import DEFAULT_FILE, Params, load_params
from fractal_model.data.manifest import read_manifest
from fractal_model.evaluation.night_budget import fits_budget, forecast_seconds
from fractal_model.evaluation.protocol import Protocol
from fractal_model.metrics.names import FID, NLL
from fractal_model.tracking import champions, nights, registry, store

T = TypeVar("T")
Outcome = Literal["evaluated", "up to date", "skipped", "did not fit", "failed"]


@dataclass(frozen=True)
class Row:
    """Of the night's table."""

    size: str
    version: str
    evaluation: str
    """preview, full, or nothing where neither was due."""
    outcome: Outcome
    detail: str
    minutes: float = 0.0


@dataclass(frozen=True)
class Due:
    """A candidate that is not evaluated, or not compared, under the current protocol."""

    size: str
    version: str
    full: Protocol
    preview: Protocol | None
    """None where there is one already, or the full evaluation is."""
    waits_since: str | None
    """When it first did not fit a night."""


@flow(name="nightly-evaluation")
@report_failure
def nightly_evaluation(params_file: Path = DEFAULT_FILE) -> list[dict[str, object]]:
    """Evaluate every registered size whose candidate has no evaluation under the current protocol.

    Previews come first, then full evaluations, as long as the budget of params.yaml allows; what
    did not fit comes first the next night. Ends with a table, and a message where a notification
    block is configured. The run fails at its end when an evaluation failed.

    Args:
        params_file: The settings file, relative to the project's folder; its section `nightly` has
            the budget of hours and the notification block.
    """
    params = load_params(params_file)
    store.connect(params.paths.outputs)
    with hold_lock(params.paths.outputs / "nightly.lock"):
        rows = Night(params, params_file).rows()
    table = [asdict(row) for row in rows]
    create_table_artifact(key="nightly-evaluation", table=table, description=summary(rows))
    say(f"nightly evaluation: {summary(rows)}")
    unsent = send(params.nightly.notification_block, rows)
    failed = [f"{row.size}: {row.detail}" for row in rows if row.outcome == "failed"]
    if failed or unsent:
        raise FractalError(f"nightly evaluation: {'; '.join([*failed, *unsent])}")
    return table


class Night:
    """One run over all sizes."""

    def __init__(self, params: Params, params_file: Path) -> None:
        self._params = params
        self._params_file = params_file
        self._deadline = time.monotonic() + params.nightly.budget_seconds

    def rows(self) -> list[Row]:
        """Do it all; what came of it, in this order."""
        found = [_or_row(partial(self._look_at, size), size) for size in registry.sizes()]
        rows = [row for row in found if isinstance(row, Row)]
        due = [each for each in found if isinstance(each, Due)]
        # Sizes that wait come first, the one that waited longest before the others.
        due.sort(key=lambda each: (each.waits_since is None, each.waits_since or ""))
        previews = [self._evaluate(each, "preview", each.preview) for each in due if each.preview]
        failed = {row.size for row in previews if row.outcome == "failed"}
        fulls = [self._evaluate(each, "full", each.full) for each in due if each.size not in failed]
        return [*previews, *fulls, *rows]

    def _look_at(self, size: str) -> Due | Row | None:
        """What is due of a size, or why nothing is; None without a candidate."""
        version = registry.aliased_version(size, registry.CANDIDATE)
        if version is None:
            return None
        if size not in self._params.models:
            return Row(size, version, "", "skipped", "not in params.yaml")
        try:
            read_manifest(self._params.dataset_folder(self._params.training[size].dataset))
        except FractalError as error:
            return Row(size, version, "", "skipped", one_line(error))
        full, preview = (protocol_of(self._params, size, quick) for quick in (False, True))
        evaluated = registry.find_evaluation(size, version, full.fingerprint) is not None
        if evaluated and champions.is_decided(size, version, full.fingerprint):
            return Row(size, version, "", "up to date", f"protocol {full.fingerprint[:12]}")
        seen = evaluated or registry.find_evaluation(size, version, preview.fingerprint) is not None
        return Due(size, version, full, None if seen else preview, nights.waits_since(size))

    def _evaluate(self, due: Due, kind: str, protocol: Protocol) -> Row:
        work = partial(self._evaluate_if_it_fits, due, kind, protocol)
        return _or_row(work, due.size, due.version, kind)

    def _evaluate_if_it_fits(self, due: Due, kind: str, protocol: Protocol) -> Row:
        row, preview = (due.size, due.version, kind), kind == "preview"
        started = time.monotonic()
        left, forecast = self._deadline - started, self._forecast(due, protocol)
        if not fits_budget(left, forecast, self._params.nightly.budget_seconds):
            nights.start_waiting(due.size)
            needed = "" if forecast is None else f"about {forecast / 3600:.2f} h needed, "
            left_hours = f"{max(0.0, left) / 3600:.2f} h left: comes first next night"
            return Row(*row, "did not fit", needed + left_hours)
        metrics = evaluate_fractal(
            size=due.size,
            model=f"models:/{registry.model_name(due.size)}/{due.version}",
            preview=preview,
            wait=False,
            params_file=self._params_file,
        )
        if not preview:
            nights.end_waiting(due.size)
        shown = [protocol.label(name) for name in (FID, NLL)]
        numbers = [f"{name} {metrics[name]:.4g}" for name in shown if name in metrics]
        return Row(*row, "evaluated", ", ".join(numbers), _minutes(started))

    def _forecast(self, due: Due, protocol: Protocol) -> float | None:
        """Seconds; a full evaluation is followed by the champion's, where that has none yet."""
        is_full = protocol == due.full
        champion = registry.aliased_version(due.size, registry.CHAMPION) if is_full else None
        versions = {each for each in (due.version, champion) if each is not None}
        checksum = protocol.fingerprint
        missing = [v for v in versions if not registry.find_evaluation(due.size, v, checksum)]
        if not missing:
            return 0.0
        dataset = self._params.training[due.size].dataset
        experiment_id = store.get_or_create_experiment(dataset, self._params.paths.outputs)
        earlier = nights.earlier_evaluations(experiment_id, due.size)
        each = forecast_seconds(earlier, protocol.samples)
        return None if each is None else each * len(missing)


def _or_row(work: Callable[[], T], size: str, version: str = "", kind: str = "") -> T | Row:
    """What the work on a size returns, or the row that says why it could not be done: whatever it
    is, the other sizes have their turn."""
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
    """Such as `2 evaluated, 1 failed`."""
    counts = Counter(row.outcome for row in rows)
    return ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) or "nothing is registered"


def send(block: str | None, rows: list[Row]) -> list[str]:
    """The night as a message; returns what kept it from being sent."""
    if block is None:
        return []
    lines = [f"{r.size} {r.version} {r.evaluation}: {r.outcome}, {r.detail}" for r in rows]
    try:
        subject = f"Nightly evaluation: {summary(rows)}"
        # Prefect's annotation has the coroutine that an event loop would get.
        Block.load(block).notify("\n".join(lines), subject=subject)  # type: ignore[union-attr]
    except Exception as error:  # the service's own; the table is written in any case
        return [f"the notification block {block} sent no message ({one_line(error)})"]
    return []


def main() -> None:
    run_flow(nightly_evaluation)


if __name__ == "__main__":
    main()
