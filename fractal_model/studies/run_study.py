"""Run a study: plan its trials, compute the missing ones in processes, compare, write the page.

Decided here: the CSV file is the store of results. A trial whose fingerprint is in a row is not run
again, on any machine. The file is written after each trial, so a stopped study continues.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from fractal_model.common.console import progress_bar, say
from fractal_model.common.errors import FractalError, explanation, last_line
from fractal_model.common.files import require_writable
from fractal_model.common.locks import hold_lock
from fractal_model.common.plurals import count_of
from fractal_model.config.params import load_params
from fractal_model.config.params_source import ParamsSource
from fractal_model.studies.comparison import VariantComparison, compare_variants
from fractal_model.studies.run_trial import prepare_process, run_trial
from fractal_model.studies.study_file import Study
from fractal_model.studies.study_page import write_page
from fractal_model.studies.trial import Afterwards, Trial, plan_trial
from fractal_model.studies.trial_table import TrialRow, read_rows, write_rows
from fractal_model.tracking import runs, store


def run_study(
    study: Study, name: str, source: ParamsSource, folder: Path, *, jobs: int
) -> tuple[VariantComparison, ...]:
    """Run the trials of a study that have no result yet, `jobs` at a time; write `NAME.csv` and
    `NAME.md` to `folder` and return the comparison. A trial that fails leaves the others alone.
    FractalError: see `plan_trials`; a trial failed; another process runs this study."""
    require_writable(folder)
    outputs = source.load().paths.outputs
    store.connect(outputs)
    trials, table = plan_trials(study, source), folder / f"{name}.csv"
    with hold_lock(outputs / "studies" / f"{name}.lock"):
        rows = _known_rows(trials, read_rows(table))
        missing = [trial for trial in trials if not _find(trial, rows)]
        say(f"{name}: {count_of(len(trials), 'trial')}, {len(trials) - len(missing)} with a result")
        failures = []
        if missing:
            with runs.study_run(trials[0].size, name, outputs) as run_id:
                for trial, result in _run_all(missing, run_id, jobs):
                    if isinstance(result, TrialRow):
                        rows = _known_rows(trials, [*rows, result])
                        write_rows(table, rows)
                    else:
                        failures.append(f"{trial.name}: {result}")
                        say(f"failed: {failures[-1]}")
        if rows:
            write_rows(table, rows)
            rows = read_rows(table)  # The page must follow from the digits in the file.
            write_page(folder / f"{name}.md", name, study, rows)
    comparison = compare_variants(rows, list(study.recipes))
    if failures:
        failed = count_of(len(failures), "trial")
        raise FractalError(f"{failed} of {name} failed, the first one is {failures[0]}")
    return comparison


def plan_trials(study: Study, source: ParamsSource) -> list[Trial]:
    """Return all trials of a study: the seeds of the base, then those of each variant, the guided
    ones last. MLflow must be connected. FractalError: a setting is wrong, two variants have the
    same settings, a guide does not fit, or a variant sees another number of images than the base
    and `other_images` does not name it."""
    planned: dict[tuple[str, int], Trial] = {}
    for variant in sorted(study.recipes, key=lambda name: name in study.guides):  # guides first
        settings = study.recipes[variant]
        try:
            params = load_params(source.file, (*settings, *source.overrides))
        except FractalError as error:
            raise FractalError(f"variant {variant}: {error}") from error
        for seed in study.seeds:
            guide = planned.get((study.guides.get(variant, ""), seed))
            afterwards = Afterwards(guide, study.tuned.get(variant))
            planned[variant, seed] = plan_trial(
                params, study.size, variant, seed, study.metrics, afterwards
            )
    trials = list(planned.values())
    _require_different(trials)
    base = trials[0]
    for trial in trials:
        if trial.images != base.images and trial.variant not in study.other_images:
            raise FractalError(
                f"the variant {trial.variant} sees {trial.images:,} images and the base "
                f"{base.images:,}: give it as many epochs, or name it in other_images"
            )
    return trials


def _require_different(trials: Sequence[Trial]) -> None:
    first: dict[str, Trial] = {}
    for trial in trials:
        other = first.setdefault(trial.fingerprint, trial)
        if other is not trial:
            raise FractalError(
                f"the variants {other.variant} and {trial.variant} have the same settings, as far "
                f"as the metrics depend on them: change or remove one"
            )


def _known_rows(trials: Sequence[Trial], rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Return the rows that are results of the trials, in their order and under their present
    names."""
    results = [(trial, _find(trial, rows)) for trial in trials]
    return [
        row.model_copy(
            update={
                "variant": trial.variant,
                "metrics": {name: row.metrics[name] for name in trial.metrics},
            }
        )
        for trial, row in results
        if row is not None
    ]


def _find(trial: Trial, rows: Sequence[TrialRow]) -> TrialRow | None:
    """The row with the result of a trial: the same fingerprint, and all of its metrics."""
    for row in rows:
        is_equal = trial.fingerprint.startswith(row.fingerprint) and row.seed == trial.seed
        if is_equal and row.metrics.keys() >= set(trial.metrics):
            return row
    return None


def _run_all(
    trials: Sequence[Trial], study_run: str, jobs: int
) -> Iterator[tuple[Trial, TrialRow | str]]:
    """Run trials in `jobs` processes. Yield each with its row when it ends, or with the reason if
    it failed."""
    threads, context = max(1, (os.cpu_count() or 1) // jobs), get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, prepare_process, (threads,))
    try:
        with progress_bar("trials", len(trials)) as update:
            futures = {pool.submit(run_trial, trial, study_run): trial for trial in trials}
            for done, future in enumerate(as_completed(futures), 1):
                trial, result = futures[future], _result_of(future)
                update(done)
                if isinstance(result, TrialRow):
                    say(f"{trial.name}: {_in_words(result)}")
                yield trial, result
    finally:  # After Ctrl-C the trials that have not begun must not run.
        pool.shutdown(wait=False, cancel_futures=True)


def _result_of(future: Future[TrialRow]) -> TrialRow | str:
    """The row of a completed trial, or the reason why it failed. A bug is raised. FractalError: the
    process was killed."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, BrokenProcessPool):
        raise FractalError(
            "a process was killed, perhaps because the memory ran out: run again, with fewer jobs "
            "at a time; finished trials are kept",
            setting="jobs",
        ) from error
    if explanation(error) is None:
        raise error
    return last_line(error)


def _in_words(row: TrialRow) -> str:
    values = (f"{name} {value:.4f}" for name, value in row.metrics.items() if value is not None)
    return ", ".join((*values, f"{row.minutes:.1f} minutes of training"))
