"""The card of an exported model: what it is, how good it is, and under which licence.

Decided here: the numbers stand twice. The metadata (`model-index`) is for the hub, the text for
people, who find the whole protocol there. Without an evaluation of the same weights there are no
numbers.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fractal_model.common.safe_text import LONGEST_NAME, safe_text
from fractal_model.evaluation.protocol import Protocol
from fractal_model.metrics.names import SPEED, STANDARD_ERROR, error_name, metric_order

if TYPE_CHECKING:
    from fractal_model.reporting.results_table import Row

_PICTURE = "samples.png"
_TASK = "unconditional-image-generation"
_CITATION = """
## Citation

```bibtex
@article{li2025fractal,
  title = {Fractal Generative Models},
  author = {Li, Tianhong and Sun, Qinyi and Fan, Lijie and He, Kaiming},
  journal = {Transactions on Machine Learning Research},
  year = {2025}
}
```
"""


def complete_card(
    file: Path, *, name: str, license: str, evaluation: Row | None, picture: Path | None
) -> None:
    """Add licence, samples, metrics and citation to the card `file` of an exported model.

    `name`: name of the model. `license`: its identifier on the hub, such as `mit`. `evaluation`: an
    evaluation of the exported weights; None leaves the metrics out. `picture`: a PNG of samples,
    which is copied beside the card; None if there is none.
    """
    card = ModelCard.load(file)
    card.data = ModelCardData(
        **{**card.data.to_dict(), "license": license},
        model_name=name,
        eval_results=None if evaluation is None else _eval_results(evaluation),
    )
    parts = [card.text.rstrip("\n") + "\n"]
    if picture is not None:
        shutil.copyfile(picture, file.with_name(_PICTURE))
        parts.append(f"\n## Samples\n\n![Samples of the model]({_PICTURE})\n")
    if evaluation is not None:
        parts.append(_results_text(evaluation))
    card.text = "".join([*parts, _CITATION])
    card.save(file)


def _metrics(row: Row) -> dict[str, tuple[float, float | None]]:
    """Value and standard error (None: not known) of each metric of quality, by its name."""
    names = sorted(row.values, key=metric_order)
    return {
        name: (row.values[name], row.values.get(error_name(name)))
        for name in names
        if name not in SPEED and not name.endswith(STANDARD_ERROR)
    }


def _eval_results(row: Row) -> list[EvalResult]:
    protocol = row.protocol
    assert protocol is not None, "metrics without a protocol cannot be compared"
    images = {} if protocol.images is None else protocol.images.model_dump(mode="json")
    shared: dict[str, Any] = {
        "protocol": protocol.fingerprint,
        "samples": protocol.samples,
        "reference": protocol.reference_source,
        **{key: images[key] for key in ("weights", "sampling", "seed") if key in images},
    }
    return [
        EvalResult(
            task_type=_TASK,
            dataset_type=row.dataset,
            dataset_name=row.dataset,
            dataset_args={"checksum": protocol.dataset_checksum, "resolution": protocol.resolution},
            metric_type=metric,
            metric_name=metric,
            metric_value=value,
            metric_args=shared if error is None else {"standard_error": error, **shared},
        )
        for metric, (value, error) in _metrics(row).items()
    ]


def _results_text(row: Row) -> str:
    assert row.protocol is not None
    numbers = [
        f"| `{metric}` | {value:.4f}" + (" |" if error is None else f" ± {error:.4f} |")
        for metric, (value, error) in _metrics(row).items()
    ]
    lines = ["", "## Results", "", "| metric | value |", "|---|---|", *numbers, ""]
    return "\n".join([*lines, *_protocol_lines(row.protocol), ""])


def _protocol_lines(protocol: Protocol) -> list[str]:
    """The protocol in words, as lines of Markdown."""
    lines = [
        "± is one standard error. Compare these numbers only with others of the same protocol:",
        "",
        f"- data set `{safe_text(protocol.dataset, LONGEST_NAME)}`, {protocol.resolution} × "
        f"{protocol.resolution} px, {protocol.classes:,} classes, SHA-256 "
        f"`{protocol.dataset_checksum}`",
        f"- {protocol.samples:,} samples, {protocol.samples_per_class:,} of each class, against "
        f"{safe_text(protocol.reference_source, LONGEST_NAME)} (SHA-256 "
        f"`{protocol.reference_checksum}`)",
    ]
    if (source := protocol.images) is not None:
        sampling = ", ".join(f"{k} {v}" for k, v in source.sampling.model_dump(mode="json").items())
        lines.append(
            f"- weights `{source.weights}`, sampled with {sampling}, first seed {source.seed}"
        )
        if source.likelihood_passes is not None:
            lines.append(
                f"- likelihood of held-out images, {source.likelihood_passes} mask draws each"
            )
    return [*lines, f"- fingerprint of the whole protocol `{protocol.fingerprint}`"]
