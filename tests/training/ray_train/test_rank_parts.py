"""Work of all ranks together: equal shares, a time limit, and errors on all ranks."""

import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from fractal_model.common.errors import FractalError
from fractal_model.config.validation import ValidationConfig
from fractal_model.evaluation.model_quality import draw_grid
from fractal_model.training.ray_train.rank_parts import RankParts
from tests.support import tiny_model
from tests.support.recipes import SAMPLING


def numbers(device: torch.device):
    return lambda part: torch.tensor(part)[:, None]


def run_out_of_memory(device: torch.device):
    def work(part: range) -> torch.Tensor:
        if len(part) > 2:
            raise torch.OutOfMemoryError("no room")
        return torch.tensor(part)[:, None]

    return work


def compute(parts: RankParts, start, total: int) -> list[int]:
    rows = dict(parts(start, total, largest=1024))
    return torch.cat([rows[part] for part in sorted(rows, key=lambda part: part.start)]).tolist()


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    parts = RankParts(rank, 2, chunk=3, seconds=60)
    outcome: dict[str, object] = {
        "rows": compute(parts, numbers, 7),
        "few": compute(parts, numbers, 1),
    }
    try:
        parts.run(lambda: 1 // rank)
    except FractalError as error:
        outcome["error"] = str(error)
    late = RankParts(rank, 2, chunk=3, seconds=60 * rank)
    time.sleep(0.01)
    try:
        compute(late, numbers, 7)
    except FractalError as error:
        outcome["late"] = str(error)
    torch.save(outcome, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_share_the_images_and_an_error_of_one_is_raised_on_both():
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (folder,), nprocs=2)
        ranks = [torch.load(Path(folder, f"{rank}.pt")) for rank in range(2)]
    for rank in ranks:
        assert rank["rows"] == [[number] for number in range(7)]
        assert rank["few"] == [[0]]
        assert "rank 0: " in rank["error"] and "division" in rank["error"]
        assert "measuring takes more than 0 s" in rank["late"]


def test_a_part_that_does_not_fit_is_halved():
    parts = RankParts(0, 1, chunk=8, seconds=60)
    assert compute(parts, run_out_of_memory, 5) == [[number] for number in range(5)]


def test_a_copy_stops_when_the_time_is_over_and_the_model_does_not():
    model = tiny_model("mar").train()
    parts = RankParts(0, 1, chunk=8, seconds=60)
    copy = parts.copy_model(model.config, model.state_dict())
    settings = ValidationConfig(grid_classes=2, grid_columns=1)
    model.eval()
    expected = draw_grid(model, SAMPLING, settings)
    model.train()
    assert draw_grid(copy, SAMPLING, settings).equal(expected)
    parts._deadline = 0.0
    with pytest.raises(FractalError, match="measuring takes more than 60 s.*max_share"):
        draw_grid(copy, SAMPLING, settings)
    assert model.training
    assert draw_grid(model, SAMPLING, settings).equal(expected)
