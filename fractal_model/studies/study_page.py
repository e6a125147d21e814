"""The Markdown page of a study. It is made anew from the study's file and its table, apart from the
section in which people write what they keep and why.
"""

from collections.abc import Sequence
from pathlib import Path

from fractal_model.common.files import atomic_file
from fractal_model.studies.comparison import (
    ERRORS,
    Estimate,
    MetricComparison,
    VariantComparison,
    compare_variants,
)
from fractal_model.studies.study_file import BASE, Study
from fractal_model.studies.trial_table import TrialRow

BEGIN, END = "<!-- kept or dropped: your text -->", "<!-- end of your text -->"
"""Lines around the text of people in a page."""
UNDECIDED = "Not decided yet."


def write_page(file: Path, name: str, study: Study, rows: Sequence[TrialRow]) -> None:
    """Write the page of a study, with the decision that the file already has."""
    text = render_page(name, study, rows, decision=read_decision(file))
    with atomic_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


def read_decision(file: Path) -> str:
    """Return the text that people have written into the page `file`, or `UNDECIDED`."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return text.partition(BEGIN)[2].partition(END)[0].strip() or UNDECIDED


def render_page(name: str, study: Study, rows: Sequence[TrialRow], *, decision: str) -> str:
    """Return the page of a study as Markdown."""
    comparison = compare_variants(rows, list(study.recipes))
    blocks = [
        f"# Study {name}",
        study.question,
        f"```\nfractal study {name}\n```",
        "## Numbers",
        *_tables(study, comparison),
        _legend(study, rows),
        "## Settings",
        _settings(study),
        "## Kept or dropped",
        f"{BEGIN}\n{decision}\n{END}",
    ]
    return "\n\n".join(blocks) + "\n"


def _tables(study: Study, comparison: Sequence[VariantComparison]) -> list[str]:
    headings = ["variant", "seeds", "images seen", "minutes"]
    rows = [[v.variant, str(v.seeds), f"{v.images:,}", _text(v.minutes, 2)] for v in comparison]
    if any(v.images_to_base for v in comparison):
        headings.append(f"images to the last value of {BASE}, ratio")
        for row, variant in zip(rows, comparison, strict=True):
            row.append(_reached(variant))
    head = _table(headings, rows)
    return [head, *(_metric_table(metric, comparison) for metric in study.metrics)]


def _reached(variant: VariantComparison) -> str:
    if variant.images_to_base is None:
        return "not reached"
    missed = variant.seeds - variant.images_to_base.count
    return _text(variant.images_to_base, 2) + (f", {missed} seeds never" if missed else "")


def _metric_table(metric: str, comparison: Sequence[VariantComparison]) -> str:
    measured = [(v.variant, v.metrics[metric]) for v in comparison if metric in v.metrics]
    rows = [[name, _text(m.value), _difference(m), m.verdict] for name, m in measured]
    return _table([f"variant, `{metric}`", "mean", f"difference to {BASE}", ""], rows)


def _difference(metric: MetricComparison) -> str:
    if metric.difference is None:
        return ""
    text = _text(metric.difference, sign="+")
    return f"**{text}**" if metric.verdict else text


def _text(value: Estimate, digits: int = 4, sign: str = "") -> str:
    """An estimate with its standard error, such as `0.7386 ± 0.0046`."""
    mean = f"{value.mean:{sign}.{digits}f}".replace("-", "−")
    return mean if value.error is None else f"{mean} ± {value.error:.{digits}f}"


def _legend(study: Study, rows: Sequence[TrialRow]) -> str:
    held_out = "the validation images"
    if study.held_out != "validation":
        held_out = f"{study.held_out:.0%} of the training images, which training did not see"
    machines = " and ".join(sorted({row.machine for row in rows}))
    return (
        f"Means and standard errors over the seeds {', '.join(map(str, study.seeds))}. A "
        f"difference is paired by seed; it is bold if larger than {ERRORS:g} standard errors. "
        f"Likelihoods are of {held_out}. Minutes are those of the training steps, on {machines}."
    )


def _settings(study: Study) -> str:
    rows = [[name, ", ".join(f"`{text}`" for text in own)] for name, own in study.variants.items()]
    shared = ", ".join(f"`{text}`" for text in study.recipes[BASE])
    return _table(
        ["variant", f"settings beside those of the size {study.size}"], [[BASE, shared], *rows]
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
