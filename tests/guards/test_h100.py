"""The measurement on a GPU, run on the CPU with small models: each row, going on, and limits."""

from __future__ import annotations

import json
import time

import pytest
import torch
import yaml
from torch.profiler import profile

from fractal_model.common.errors import FractalError
from tests.benchmarks.h100.__main__ import main, measure_row
from tests.benchmarks.h100.kernels import collect_kernels
from tests.benchmarks.h100.published import published_model
from tests.benchmarks.h100.rows import Row, TooLong, all_rows, time_limit
from tests.support.params import small_params

CPU = torch.device("cpu")
LEVELS = {"ar-64": 2, "mar-64": 2, "mar-b": 3, "mar-l": 3, "mar-h": 3}


@pytest.fixture
def params(tmp_path):
    """Settings whose published sizes are tiny, with the published numbers of levels."""
    content = small_params()
    for name, levels in LEVELS.items():
        content["models"][name] |= {
            "patch_sizes": [2**n for n in range(levels, -1, -1)],
            "widths": [16] * (levels + 1),
            "blocks": [1] * (levels + 1),
            "heads": [2] * (levels + 1),
            "num_classes": 3,
        }
        content["training"][name] |= {"compile": False}
        content["sampling"][name] |= {"iterations": [2] * levels}
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def rows_in(out) -> dict:
    return json.loads(out.read_text())["rows"]


def test_rows_are_measured_once_and_stand_beside_the_least_time(
    params, tmp_path, capsys, monkeypatch
):
    # All kernels, because on a CPU any part may be too quick to be among the longest ones.
    monkeypatch.setattr("tests.benchmarks.h100.kernels.MOST_KERNELS", 10_000)
    out = tmp_path / "results" / "h100.json"
    for text in ("train mar-l, batch 32, recomputed", "kernels of a training step, mar-l"):
        main(minutes=5, out=out, only=text, params=params)
    rows = rows_in(out)
    assert len(rows) == 5 and "1 of 1 rows measured" in capsys.readouterr().out
    assert "train mar-l, batch 32, recomputed selective-yes-yes-yes" in rows
    step = rows["train mar-l, batch 32, recomputed no-yes-yes-yes"]
    assert step["seconds_per_step"] > 0 and step["useful_tflops"] > 0
    *levels, rest = step["levels"]
    assert len(levels) == 4 and "gflop" not in rest
    assert all(level["gigabytes_at_least"] > 0 and level["gflop"] > 0 for level in levels)
    kernels = rows["kernels of a training step, mar-l, batch 32"]["kernels"]
    assert {kernel["part"] for kernel in kernels} > {"pixels", "rest"}
    assert [k["seconds"] for k in kernels] == sorted((k["seconds"] for k in kernels), reverse=True)
    before = out.read_bytes()
    main(minutes=5, out=out, only="kernels of a training step, mar-l", params=params)
    assert out.read_bytes() == before


@pytest.mark.parametrize("size", ["mar-l", "ar-64"])
def test_sampling_is_measured_by_level(size, params, tmp_path):
    out = tmp_path / "h100.json"
    main(minutes=5, out=out, only=f"sample {size}, batch 1", params=params)
    row = rows_in(out)[f"sample {size}, batch 1"]
    assert row["seconds_per_image"] > 0 and row["seconds_of_the_warm_up"] > 0
    assert len(row["levels"]) >= LEVELS[size]  # Compiled, the last level has the pixels in it.
    assert all(level["kernels_at_least"] > 0 for level in row["levels"])


def test_a_row_that_failed_is_measured_again_and_the_others_are_not(params, tmp_path):
    out, name = tmp_path / "h100.json", "train mar-b, batch 32"
    main(minutes=5, out=out, only=name, params=params)
    content = json.loads(out.read_text())
    content["rows"] = {name: {"error": "x"}, "ceiling": {"float32": 1.0}}
    out.write_text(json.dumps(content))
    main(minutes=5, out=out, only=name, params=params)
    assert rows_in(out)[name]["seconds_per_step"] > 0 and rows_in(out)["ceiling"] == {"float32": 1}


def test_a_row_that_the_minutes_cut_off_is_left_for_the_next_time(params, tmp_path, monkeypatch):
    def sleep(device: torch.device) -> dict:
        time.sleep(60)
        return {}

    rows = "tests.benchmarks.h100.__main__.all_rows"
    monkeypatch.setattr(rows, lambda *arguments: [Row("slow", sleep), Row("next", sleep)])
    out = tmp_path / "h100.json"
    main(minutes=0.1, out=out, params=params)
    assert not out.exists()


def test_a_row_that_fails_or_takes_too_long_says_so_and_ends():
    def fail(device: torch.device) -> dict:
        raise torch.OutOfMemoryError("no memory\nfor this")

    def sleep(device: torch.device) -> dict:
        time.sleep(30)
        return {}

    assert measure_row(Row("x", fail), CPU, 5)["error"] == "OutOfMemoryError: no memory"
    assert measure_row(Row("x", sleep), CPU, 0.1)["error"] == "TooLong: not finished after 0.1 s"


def test_a_limit_ends_with_its_block():
    with pytest.raises(TooLong), time_limit(0.05):
        time.sleep(5)
    with time_limit(0.05):
        pass
    time.sleep(0.1)


def test_an_earlier_alarm_goes_on_after_a_limit():
    def run_both() -> None:
        with time_limit(0.3):
            with time_limit(10):
                pass
            time.sleep(5)

    with pytest.raises(TooLong, match=r"after 0\.3 s"):
        run_both()


def test_results_of_another_machine_are_not_mixed(params, tmp_path):
    out = tmp_path / "h100.json"
    out.write_text(json.dumps({"machine": {"device": "x"}, "rows": {}}))
    with pytest.raises(FractalError, match="this is .*: write to another file"):
        main(out=out, params=params)


def test_an_unknown_row_is_refused(params, tmp_path):
    with pytest.raises(FractalError, match="no row has 'mar-z' in its name"):
        main(out=tmp_path / "h100.json", only="mar-z", params=params)


def test_names_are_unique_and_the_published_code_is_optional(tmp_path):
    from fractal_model.config.params import load_params
    from tests.support.params import SHIPPED

    ours, both = (all_rows(load_params(SHIPPED), folder) for folder in (None, tmp_path))
    assert len({row.name for row in both}) == len(both) == len(ours) + 4
    assert ours[0].name == "ceiling" and ours[1].name == "train mar-l, batch 32"
    with pytest.raises(FractalError, match=r"no models/fractalgen.py: clone the published code"):
        published_model(tmp_path, load_params(SHIPPED).size("mar-l"))


def test_operations_before_the_first_mark_belong_to_no_part():
    with profile() as profiler:
        torch.ones(8).sum()
    assert collect_kernels(profiler.events(), ("pixels",)) == []
