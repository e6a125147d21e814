"""The results table: which rows are comparable, and in which formats it is written."""

from __future__ import annotations

import io
import json as json_module

import pandas as pd
import pytest

from fractal_model.common.errors import FractalError
from fractal_model.evaluation.protocol import ImageSource
from fractal_model.metrics.reference import OWN_IMAGES
from fractal_model.reporting import results_formats
from fractal_model.reporting.published_results import PUBLISHED, published_optimum
from fractal_model.reporting.results_table import Row, results_table, rows_of_dataset
from tests.support import REPOSITORY
from tests.support.evaluated_rows import DIGITS, SAMPLING, VALUES, imagenet, protocol


@pytest.fixture
def frame() -> pd.DataFrame:
    return results_table(DIGITS)


def reasons(frame: pd.DataFrame) -> dict[str, str]:
    return dict(zip(frame["run"], frame["reason"], strict=True))


def test_only_rows_of_an_equal_protocol_are_comparable(frame):
    reason_by_run = reasons(rows_of_dataset(frame, "digits"))
    assert reason_by_run["r3"] == ""
    assert reason_by_run["r2"] == "preview of 50 samples, the full set has 300"
    assert reason_by_run["r1"] == "not the dataset_checksum of the newest evaluation"
    assert reason_by_run["r0"] == "its protocol is not recorded"
    assert (frame["comparable"] == (frame["reason"] == "")).all()


def test_a_row_with_another_guidance_is_comparable():
    strong = SAMPLING.model_copy(update={"guidance": 9.0})
    other = protocol()
    other = other.model_copy(
        update={"images": other.images.model_copy(update={"sampling": strong})}
    )
    frame = rows_of_dataset(
        results_table([DIGITS[0], Row("digits", "m", VALUES, other, "strong")]), "digits"
    )
    assert frame["comparable"].all()
    assert frame["guidance"].tolist() == [2.5, 9.0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"samples_per_class": 5}, "5,000 samples, published 50,000"),
        ({"resolution": 32}, "32 px, published 64"),
        ({"classes": 500, "samples_per_class": 100}, "500 classes, published 1,000"),
        ({"reference_source": OWN_IMAGES}, "against training images, published: against ADM's"),
    ],
)
def test_rows_beside_published_numbers_follow_the_published_protocol(changes, reason):
    row = Row("imagenet64", "fractal-mar-64 version 1", {"fid": 2.9}, imagenet(**changes), "ours")
    actual = reasons(results_table([row]))["ours"]
    assert actual.startswith(reason) and bool(actual) == bool(reason)


def test_settings_that_decide_the_numbers_must_be_equal():
    other = ImageSource(
        weights="ema",
        sampling=SAMPLING.model_copy(update={"guidance": 9.0}),
        seed=0,
        likelihood_passes=3,
    )
    only_own = ImageSource(
        weights="model",
        sampling=SAMPLING.model_copy(update={"guidance": 9.0}),
        seed=7,
        likelihood_passes=2,
    )
    changes = {
        "newest": {},
        "images": {"images": other},
        "own": {"images": only_own},
        "kid": {"kid_subsets": 9},
        "files": {"images": None},
    }
    rows = [Row("digits", "a", {}, protocol(**change), run) for run, change in changes.items()]
    reason_by_run = reasons(results_table(rows))
    assert reason_by_run["images"] == "not the weights, likelihood_passes of the newest evaluation"
    assert reason_by_run["kid"] == "not the kid_subsets of the newest evaluation"
    assert reason_by_run["newest"] == reason_by_run["own"] == reason_by_run["files"] == ""


def test_rows_beside_published_numbers_are_also_compared_with_each_other():
    changes = {
        "preview": {"samples_per_class": 5, "dataset_checksum": "c" * 64},
        "newest": {},
        "data": {"dataset_checksum": "c" * 64},
        "network": {"network_checksum": "sha256:1"},
    }
    rows = [Row("imagenet64", "a", {}, imagenet(**c), run) for run, c in changes.items()]
    reason_by_run = reasons(results_table(rows))
    assert reason_by_run["preview"].startswith("5,000 samples") and reason_by_run["newest"] == ""
    assert reason_by_run["data"] == "not the dataset_checksum of the newest evaluation"
    assert reason_by_run["network"] == "not the network_checksum of the newest evaluation"


def test_other_dinov2_weights_leave_out_only_their_distance():
    values = {"fid": 3.0, "fd_dinov2": 100.0}
    checksums = {"newest": None, "first": "d" * 64, "other": "e" * 64}
    rows = [
        Row(
            "digits",
            "a",
            values if checksum else {"fid": 3.0},
            protocol(dinov2_checksum=checksum),
            run,
        )
        for run, checksum in checksums.items()
    ]
    frame = results_table(rows).set_index("run").loc[list(checksums)]
    assert frame["comparable"].all() and frame["fid"].eq(3.0).all()
    assert frame["fd_dinov2"].notna().tolist() == [False, True, False]


def test_the_published_numbers_are_the_papers():
    best = published_optimum("mar-l")
    assert (best.guidance, best.logit_scale, best.values["fid"]) == (21.0, 1.1, 7.30)
    assert published_optimum("mar-64-two-level") is None and published_optimum("digits") is None
    likelihoods = {row.model: row.values.get("nll_bits_per_dim") for row in PUBLISHED}
    assert likelihoods["FractalAR-64"] == 3.14 and likelihoods["VDM"] == 3.40


def test_an_unknown_data_set_is_refused(frame):
    with pytest.raises(FractalError, match=r"'cifar'.*digits, imagenet256, imagenet64"):
        rows_of_dataset(frame, "cifar")


def test_markdown_has_italics_and_footnotes(frame):
    text = results_formats.markdown(rows_of_dataset(frame, "digits"))
    assert "0.7425 ± 0.0044" in text and "fid_50" in text
    assert "*fractal-digits version 3*[^1]" in text and "*80.0 ± 2.0*" in text
    assert "[^1]: Not comparable: preview of 50 samples" in text


def test_latex_escapes_and_is_a_table(frame):
    text = results_formats.latex(rows_of_dataset(frame, "digits"))
    assert r"\toprule" in text and r"0.7425 $\pm$ 0.0044" in text
    assert r"\textit{fractal\_digits version 1}\textsuperscript{3}" in text
    assert r"fid\_50" in text and text.count(r"\begin{tabular}") == 1


def test_latex_escapes_every_special_character():
    rows = [Row("digits", r"a\b~c^d{e}", VALUES, protocol(), "r")]
    text = results_formats.latex(rows_of_dataset(results_table(rows), "digits"))
    escaped = r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d\{e\}"
    assert escaped in text


def test_csv_and_json_have_every_number(frame):
    read = pd.read_csv(io.StringIO(results_formats.csv(frame)))
    ours = read[read["run"] == "r3"].iloc[0]
    assert ours["nll_bits_per_dim_stderr"] == 0.0044 and ours["comparable"]
    rows = json_module.loads(results_formats.json(frame))
    (preview,) = [row for row in rows if row["run"] == "r2"]
    assert preview["fid_50"] == 80.0 and preview["fid"] is None and not preview["comparable"]


def test_a_value_is_rounded_to_two_digits_of_its_error():
    values = {"kid": 0.008107, "kid_stderr": 0.002, "fid": 1234.56, "fid_stderr": 123.0}
    text = results_formats.markdown(results_table([Row("digits", "m", values, protocol(), "r")]))
    assert "0.0081 ± 0.0020" in text and "1235 ± 123" in text
    values = {"kid": 0.008107, "kid_stderr": 0.0, "fid": 35.46}
    text = results_formats.markdown(results_table([Row("digits", "m", values, protocol(), "r")]))
    assert "0.008107 |" in text and "35.46 |" in text and "±" not in text.split("## imagenet")[0]


def test_the_published_numbers_in_the_documentation_are_those_of_the_table():
    text = (REPOSITORY / "docs" / "published-models.md").read_text(encoding="utf-8")
    rows = [line[1:-1].split("|") for line in text.splitlines() if line.startswith("| `")]
    shown = {
        name.strip(" `"): [cell.strip() for cell in cells]
        for name, *cells in rows
        if len(cells) == 6
    }
    for published in (row for row in PUBLISHED if row.size is not None):
        values = published.values
        fid, score = (values.get(name) for name in ("fid", "inception_score"))
        pair = [values[name] for name in ("precision", "recall") if name in values]
        assert shown.pop(published.size) == [
            "" if fid is None else f"{fid:.2f}",
            "" if score is None else f"{score:.1f}",
            ", ".join(f"{value:.2f}" for value in pair),
            f"{values['nll_bits_per_dim']:.2f}" if "nll_bits_per_dim" in values else "",
            "" if published.guidance is None else f"{published.guidance:g}",
            "" if published.logit_scale is None else f"{published.logit_scale:g}",
        ]
    assert not shown
