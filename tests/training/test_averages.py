"""Moving averages equal those of torch to the bit, and continue from checkpoints."""

from __future__ import annotations

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fractal_model.common.errors import FractalError
from fractal_model.training.averages import MovingAverages
from tests.support import tiny_model
from tests.support.recipes import BATCH, trainer

DECAYS = (0.3, 0.9, 0.9999)
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def change(model: torch.nn.Module, seed: int) -> None:
    """Add random numbers to all weights, as a step of the optimiser would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device))


def assert_equal(averages: MovingAverages, name: str, expected: torch.nn.Module) -> None:
    state = averages.state()[name]
    assert set(state) == set(expected.state_dict())
    assert all(state[key].equal(tensor) for key, tensor in expected.state_dict().items())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_every_update_equals_that_of_torch_to_the_bit(kind, device):
    model = tiny_model(kind).to(device)
    averages = MovingAverages(model, DECAYS)
    theirs = [AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(d)) for d in DECAYS]
    for step in range(4):
        change(model, step)
        averages.update()
        for decay, expected in zip(DECAYS, theirs, strict=True):
            expected.update_parameters(model)
            assert_equal(averages, f"ema-{decay}", expected.module)
        if step == 0:
            assert_equal(averages, "ema-0.9", model)  # The first update copies.


def test_a_training_averages_the_weights_after_each_step():
    trained = trainer(ema_decays=DECAYS)
    expected = AveragedModel(trained.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        trained.step(BATCH)
        expected.update_parameters(trained.model)
    assert_equal(trained.averages, "ema-0.9", expected.module)
    assert trainer().averages.state() == {}


@pytest.mark.parametrize("name", ["ema", "ema-0.9"])
def test_one_average_continues_from_a_checkpoint_with_or_without_its_decay(name):
    model = tiny_model("ar")
    straight = MovingAverages(model, (0.9,))
    for step in range(2):
        change(model, step)
        straight.update()
    resumed = MovingAverages(model, (0.9,))
    resumed.load({name: straight.state()["ema-0.9"]}, is_first=False)
    change(model, 3)
    for averages in (straight, resumed):
        averages.update()
    ours, theirs = resumed.state()["ema-0.9"], straight.state()["ema-0.9"]
    assert all(ours[key].equal(theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("decays", "stored", "message"),
    [
        ((0.9,), (), r"averages ema-0\.9 of .* has none: start from the beginning"),
        ((0.9,), ("ema-0.5",), r"averages ema-0\.9 of .* has ema-0\.5:"),
        ((0.5, 0.9), ("ema",), r"averages ema-0\.5 and ema-0\.9 of .* has ema:"),
        ((0.5, 0.9), ("ema-0.9",), r"averages ema-0\.5 of .* has ema-0\.9:"),
    ],
)
def test_a_decay_that_a_checkpoint_lacks_is_named(decays, stored, message):
    model = tiny_model("ar")
    averages = MovingAverages(model, decays)
    with pytest.raises(FractalError, match=message):
        averages.load({name: model.state_dict() for name in stored}, is_first=False)


def test_averages_that_the_recipe_does_not_keep_are_ignored():
    model = tiny_model("ar")
    averages = MovingAverages(model, (0.9,))
    other, wanted = tiny_model("ar", sharpen=2.0), tiny_model("ar", sharpen=3.0)
    stored = {"ema-0.5": other.state_dict(), "ema-0.9": wanted.state_dict()}
    averages.load(stored, is_first=False)
    assert_equal(averages, "ema-0.9", wanted)
    MovingAverages(model, ()).load(stored, is_first=False)
