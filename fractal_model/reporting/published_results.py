"""The published numbers, for comparison with ours.

Source: Li, Sun, Fan and He, "Fractal Generative Models", TMLR 2025: the tables of likelihood and
of sample quality, and the settings of the sampler in the appendix. Protocol: 50,000 samples, the
same number of each of 1000 classes, against ADM's statistics of the training set; likelihood
unconditional, on the validation images.
"""

from dataclasses import dataclass

from fractal_model.metrics.names import FID, INCEPTION_SCORE, NLL, PRECISION, RECALL

SOURCE = "Li et al., Fractal Generative Models, TMLR 2025"
CLASSES = 1000


@dataclass(frozen=True)
class PublishedResult:
    """The published metrics of one model on one data set, and how it was sampled."""

    model: str
    dataset: str
    values: dict[str, float]
    """Published value of each metric, under our name for the metric."""
    size: str | None = None
    """The size in params.yaml, for the paper's own models."""
    guidance: float | None = None
    logit_scale: float | None = None
    """Logit scale of the sampler, which the paper calls temperature."""
    iterations: tuple[int, ...] = ()
    """Sampling iterations of each MAR level; empty without MAR levels or published samples."""


def _fractal_64(model: str, size: str, w: float, scale: float, *, steps=(), fid, score, nll):
    values = {NLL: nll, FID: fid, INCEPTION_SCORE: score}
    return PublishedResult(model, "imagenet64", values, size, w, scale, steps)


def _fractal_256(model: str, size: str, w: float, *, fid, score, precision, recall):
    values = {FID: fid, INCEPTION_SCORE: score, PRECISION: precision, RECALL: recall}
    return PublishedResult(model, "imagenet256", values, size, w, 1.1, (64, 16, 16))


def _likelihood(model: str, nll: float, size: str | None = None) -> PublishedResult:
    return PublishedResult(model, "imagenet64", {NLL: nll}, size)


PUBLISHED: tuple[PublishedResult, ...] = (
    _fractal_64("FractalAR-64", "ar-64", 11.0, 1.03, fid=5.30, score=56.8, nll=3.14),
    _fractal_64(
        "FractalMAR-64", "mar-64", 6.5, 1.02, steps=(64, 16), fid=2.72, score=87.9, nll=3.15
    ),
    _likelihood("FractalAR-64, two levels", 3.34, "ar-64-two-level"),
    _likelihood("FractalMAR-64, two levels", 3.36, "mar-64-two-level"),
    _fractal_256(
        "FractalMAR-B", "mar-b", 29.0, fid=11.80, score=274.3, precision=0.78, recall=0.29
    ),
    _fractal_256("FractalMAR-L", "mar-l", 21.0, fid=7.30, score=334.9, precision=0.79, recall=0.44),
    _fractal_256("FractalMAR-H", "mar-h", 19.0, fid=6.15, score=348.9, precision=0.81, recall=0.46),
    # Other models, as the paper quotes them.
    _likelihood("iDDPM", 3.53),
    _likelihood("VDM", 3.40),
    _likelihood("Flow Matching", 3.31),
    _likelihood("NFDM", 3.20),
    _likelihood("PixelRNN", 3.63),
    _likelihood("PixelCNN", 3.57),
    _likelihood("Sparse Transformer", 3.44),
    _likelihood("Routing Transformer", 3.43),
    _likelihood("Combiner", 3.42),
    _likelihood("Perceiver AR", 3.40),
    _likelihood("MegaByte", 3.40),
)


def published_optimum(size: str) -> PublishedResult | None:
    """Return the published result of a size, with the best guidance that the paper found. None if
    the paper does not have the size or its FID."""
    results = (row for row in PUBLISHED if row.size == size and FID in row.values)
    return next(results, None)
