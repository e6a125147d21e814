"""Failures of a training that Ray does not repeat, and what they mean for people.

Decided here: Ray starts the workers again if one dies or hangs during training, or while their
processes connect. It ends with an error if a worker dies while it receives its function, or if Ray
ended a worker itself because the machine's memory ran low. These failures count towards
`max_failures` here.
"""

import logging
import re
from collections.abc import Callable, Mapping

import ray
import ray.train

from fractal_model.common.errors import FractalError, last_line, one_line
from fractal_model.config.training import TrainingConfig
from fractal_model.training.ray_train.failed_start import StartFailedError

_OUT_OF_MEMORY = re.compile(
    r"Memory on the node \(IP: ([^,)]+).*? was ([\d.]+)GB used / ([\d.]+)GB limit", re.DOTALL
)
"""Matches Ray's message about processes that it ended because memory ran low."""
_LOST_CONNECTION = re.compile(r"Connection (closed|reset) by peer|gloo|NCCL|DistBackend")
"""Matches the error of a worker that has lost its connection to another worker."""
logger = logging.getLogger("fractal.training")


def train_through_failures(
    train: Callable[[int], ray.train.Result], recipe: TrainingConfig
) -> ray.train.Result:
    """Call `train` with the recipe's number of workers until training has ended: again with as many
    if a worker died while they started, and with three quarters of them while a machine has too
    little memory. FractalError: training failed for another reason, or more than `max_failures`
    times."""
    workers, failures = recipe.workers, 0
    while True:
        try:
            return train(workers)
        except (ray.train.TrainingFailedError, ray.exceptions.OutOfMemoryError) as error:
            failures += 1
            shortage = _memory_shortage(error, workers)
            is_repeated = shortage is not None or _is_death_at_start(error)
            if not is_repeated or 0 <= recipe.max_failures < failures:  # -1 means no limit.
                raise _training_error(error, shortage, recipe) from error
        if shortage is None:
            logger.warning("a worker died while the workers started; they start again")
            continue
        workers = max(recipe.min_workers, workers * 3 // 4)
        logger.warning("%s; training continues with at most %d", shortage, workers)


def _is_death_at_start(error: BaseException) -> bool:
    """True if a worker died while the workers started, or lost its connection to one that did."""
    failure = _controller_failure(error)
    if isinstance(failure, ray.exceptions.RayTaskError):
        return _LOST_CONNECTION.search(str(failure)) is not None
    return isinstance(failure, ray.exceptions.RayActorError)


def _controller_failure(error: BaseException) -> BaseException | None:
    return error.controller_failure if isinstance(error, ray.train.ControllerError) else None


def _memory_shortage(error: BaseException, workers: int) -> str | None:
    """Describe which machine has too little memory; None if `error` has another cause."""
    failures = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
    for cause in (error, *failures.values()):
        if match := _OUT_OF_MEMORY.search(str(cause)):
            machine, used, limit = match.groups()
            return (
                f"the machine {machine} has too little memory for its share of the workers "
                f"({workers}): {used} of {limit} GB were in use, and Ray ended processes there"
            )
    return None


def _training_error(
    error: BaseException, shortage: str | None, recipe: TrainingConfig
) -> FractalError:
    again = "run again, training continues from the last checkpoint"
    if shortage is not None:
        way_out = "lower workers and min_workers in params.yaml or add memory"
        return FractalError(f"training failed: {shortage}; {way_out}, and {again}")
    reached = f"and max_failures ({recipe.max_failures}) is reached"
    if isinstance(error, ray.train.WorkerGroupError):
        return FractalError(
            f"training failed on a worker, {reached}: {_first_cause(error.worker_failures)}; "
            f"correct this and {again}"
        )
    logs = "Ray's logs are in /tmp/ray/session_latest/logs/train"
    is_start_over = isinstance(_controller_failure(error), StartFailedError)
    if is_start_over or _is_death_at_start(error):
        return FractalError(
            f"training failed: a worker died while the workers started, {reached}; {again} ({logs})"
        )
    return FractalError(f"training failed: {one_line(error)}; {again} ({logs})")


def _first_cause(failures: Mapping[int, BaseException]) -> str:
    """Return the last line of the failure that probably caused the others: the first failure that
    is not a lost connection. If all are lost connections, it is the first of all."""
    causes = [last_line(failure) for failure in failures.values()]
    return min(causes, key=lambda cause: bool(_LOST_CONNECTION.search(cause)))
