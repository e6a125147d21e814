"""Names of the weights of a checkpoint: the trained weights and their moving averages.

    model       the trained weights
    ema         the only moving average of the weights
    ema-0.999   the moving average with the decay 0.999

Decided here: the decay is part of the name, so that files, metrics and settings of several averages
are told apart. The name `ema` stays in use because one average needs no decay.
"""

from collections.abc import Collection, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from fractal_model.common.safe_text import shorten
from fractal_model.common.strict import NUMBER

MODEL, EMA = "model", "ema"
MOST_AVERAGES = 8
Decay = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), NUMBER]
ModelSource = Annotated[str, Field(pattern=r"\S", max_length=4096)]
"""Place of a model, which may select weights with `#ema-0.999` at its end."""
_LONGEST = 60


def average_name(decay: float) -> str:
    """Name of the moving average with this decay, such as `ema-0.999`."""
    return f"{EMA}-{decay}"


def parse_weights(text: str) -> str:
    """Return the name of weights in its usual form: `ema-0.9990` becomes `ema-0.999`. ValueError:
    the text is neither `model` nor `ema` nor `ema-` and a decay between 0 and 1."""
    if text in (MODEL, EMA):
        return text
    kind, _, decay = text.partition("-")
    try:
        number = float(decay) if kind == EMA else 0.0
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise ValueError(
            f"{shorten(text, _LONGEST)!r} names no weights: give {MODEL}, {EMA}, or {EMA} with a "
            f"decay between 0 and 1, such as {average_name(0.999)}"
        )
    return average_name(number)


def choose_average(weights: str, averages: Collection[str], mark: str = "") -> str:
    """Return the one of `averages` that `weights` means: `ema` or a name with a decay. ValueError:
    there is no such average, or `ema` could be several. `mark` is put before each name that the
    message offers."""
    offered = " or ".join(f"{mark}{name}" for name in averages)
    if weights in averages:
        return weights
    if not averages:
        raise ValueError("there is no moving average of the weights")
    if weights != EMA:
        raise ValueError(f"there is no moving average {weights}: choose {offered}")
    if len(averages) > 1:
        raise ValueError(f"there are several moving averages of the weights: choose {offered}")
    (only,) = averages
    return only


def require_distinct(decays: Sequence[float]) -> tuple[float, ...]:
    """Return the decays sorted, so that their order in params.yaml does not matter. ValueError: a
    decay is there twice."""
    if len(set(decays)) < len(decays):
        raise ValueError("a decay is there twice: give each decay once")
    return tuple(sorted(decays))


Weights = Annotated[str, AfterValidator(parse_weights)]
"""Name of weights in settings."""
Decays = Annotated[
    tuple[Decay, ...], Field(max_length=MOST_AVERAGES), AfterValidator(require_distinct)
]
