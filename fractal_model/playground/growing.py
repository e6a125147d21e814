"""Images that are sampled in a thread of their own, while a page shows how they grow.

Decided here: the sampler never waits for the page, and the page never waits long for the sampler. A
moment that comes while the page still draws the one before is left out; the last one never is. One
drawing runs at a time: the thread holds the lock until it has ended, also if nobody looks any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from queue import Empty, Queue
from threading import Event, Lock, Thread

import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.generation.growth import Growth, Moment
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.parts import is_out_of_memory
from fractal_model.sampling.known import KnownPixels
from fractal_model.sampling.sampler import Sampler

_WAIT_SECONDS = 0.1
_REPEAT = 50
"""Number of waits without a new moment after which the last one is shown again."""


class _Unwanted(Exception):
    """The page does not want the images any more."""


def watch_growth(
    turn: Lock,
    model: FractalModel,
    settings: SamplingConfig,
    labels: Tensor,
    seeds: Sequence[int],
    known: KnownPixels | None = None,
) -> Iterator[Moment]:
    """Sample one image for each of B `labels` (B,) and B `seeds`, from the pixels that `known` has
    of one image for all. Yield moments of their growth; the last one shows the finished images. If
    the iterator is closed early, the sampling ends at its next step. The sampling begins when it
    has the lock `turn`. FractalError: the images do not fit into memory, or see `Sampler`."""
    moments: Queue[Moment] = Queue(1)
    unwanted, result = Event(), Future[Tensor]()
    known = None if known is None else known.repeat(len(labels))

    def on_moment(moment: Moment) -> None:
        if unwanted.is_set():
            raise _Unwanted
        if moments.empty():
            moments.put(_show_known(moment, known))

    def sample() -> None:
        try:
            with turn:
                growth = Growth(model.config, len(labels), on_moment)
                images = Sampler(model, settings)(labels, seeds, known=known, observe=growth)
                result.set_result(images.cpu())
        except BaseException as error:
            result.set_exception(error)

    # A daemon, so that Ctrl-C ends the process in the middle of a drawing.
    Thread(target=sample, name="sampling", daemon=True).start()
    try:
        yield from _until_done(moments, result)
        images = result.result()
        yield Moment(images, torch.zeros_like(images[:, 0], dtype=torch.bool), ())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        count = len(labels)
        raise FractalError(f"{count} images do not fit into memory: ask for fewer") from error
    finally:
        unwanted.set()


def _until_done(moments: Queue[Moment], result: Future[Tensor]) -> Iterator[Moment]:
    """Yield moments until the result is there. The last one is repeated when none comes for a
    while, because a page can close an iterator only where it yields."""
    last, waits = None, 0
    while not result.done():
        try:
            last, waits = moments.get(timeout=_WAIT_SECONDS), 0
            yield last
        except Empty:
            waits += 1
            if last is not None and waits % _REPEAT == 0:
                yield last


def _show_known(moment: Moment, known: KnownPixels | None) -> Moment:
    """A copy of the moment in which known pixels are never grey."""
    if known is None:
        return moment.copy()
    images = torch.where(known.mask[:, None], known.images, moment.images)
    return Moment(images, moment.hidden & ~known.mask, moment.boxes)
