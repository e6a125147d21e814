"""The names of all metrics in MLflow, in files and in tables."""

# Lower is better.
NLL, CONDITIONAL_NLL = "nll_bits_per_dim", "nll_conditional_bits_per_dim"
FID, KID, FD_DINOV2 = "fid", "kid", "fd_dinov2"
# Higher is better.
INCEPTION_SCORE, PRECISION, RECALL = "inception_score", "precision", "recall"
CLASS_AGREEMENT = "class_agreement"

SAMPLE_METRICS = (FID, KID, INCEPTION_SCORE, PRECISION, RECALL, FD_DINOV2, CLASS_AGREEMENT)
"""Metrics that depend on the number of samples."""
SPEED = ("seconds_per_image", "images_per_second")
"""Metrics of sampling speed. Lower seconds and higher images per second are better."""
STANDARD_ERROR = "_stderr"
"""Suffix that turns the name of a metric into the name of its standard error."""
_FIRST = (NLL, CONDITIONAL_NLL, FID, INCEPTION_SCORE, PRECISION, RECALL, KID)
_THOUSAND = 1000


def error_name(metric: str) -> str:
    """Return the name of a metric's standard error."""
    return f"{metric}{STANDARD_ERROR}"


def metric_order(metric: str) -> tuple[int, str]:
    """Return the sort key of a metric in tables: the most important metrics come first, the others
    follow by name, and each metric comes directly before its standard error."""
    base = metric.removesuffix(STANDARD_ERROR)
    return (_FIRST.index(base) if base in _FIRST else len(_FIRST), metric)


def preview_name(metric: str, samples: int) -> str:
    """Return the name of a metric in a preview of `samples` images: `fid` becomes `fid_5k`, and
    `fid_stderr` becomes `fid_5k_stderr`. Metrics that do not depend on samples keep their name."""
    base = metric.removesuffix(STANDARD_ERROR)
    if base not in SAMPLE_METRICS:
        return metric
    return f"{base}_{short_count(samples)}{metric.removeprefix(base)}"


def is_preview_of(metric: str, name: str) -> bool:
    """True if `name` is the name of `metric` in a preview, for example `fid_5k` of `fid`."""
    count = name.removeprefix(f"{metric}_").removesuffix("k")
    return name.startswith(f"{metric}_") and count.isdecimal()


def short_count(count: int) -> str:
    """Return a number of images as metric names write it: 5000 as `5k`, 300 as `300`."""
    return f"{count // _THOUSAND}k" if count % _THOUSAND == 0 else str(count)
