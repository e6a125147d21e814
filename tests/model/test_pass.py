"""Properties of a pass through all levels that hold for any weights."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.config.model import ModelConfig
from fractal_model.config.params import load_params
from fractal_model.model import fractal
from fractal_model.model.fractal import (
    NO_CLASS,
    FractalModel,
    Rows,
    exact_guides,
    initialise,
)
from fractal_model.model.likelihood import pass_bits
from fractal_model.model.losses import training_loss
from fractal_model.training.masks import training_masks
from tests.support import images_for, random_images, tiny_model
from tests.support.params import SHIPPED

NULL = torch.full((2,), NO_CLASS)


def forbid_masks(level, rows):
    raise AssertionError("an AR model needs no mask")


def run(model, images, masks=forbid_masks, labels=None):
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    with torch.no_grad():
        return model(images, labels, masks=masks, guides=exact_guides)


def test_uniform_logits_give_eight_bits(kind):
    model = tiny_model(kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "codebooks" in name or "biases" in name:
                parameter.zero_()
    bits = pass_bits(model, images_for(model, 2), [0, 1], passes=3, labels=NULL).mean(1)
    guides = sum(1 / level.patch_size**2 for level in model.config.levels if level.guiding_pixel)
    assert bits.tolist() == pytest.approx([8 * (1 + guides)] * 2, rel=1e-6)


def allow_two_values(model: FractalModel) -> FractalModel:
    """Give only the values 0 and 255 any probability, so that all possible images can be tried."""
    with torch.no_grad():
        for bias in model.pixel.biases:
            bias.fill_(-1e9)
            bias[:, [0, 255]] = 0
    return model


def all_two_valued_images() -> torch.Tensor:
    bits = torch.tensor(list(itertools.product((0, 255), repeat=12)), dtype=torch.uint8)
    return bits.view(-1, 3, 2, 2)


def test_ar_probabilities_sum_to_one():
    model = allow_two_values(tiny_model("ar", patch_sizes=(2, 1), generators=("ar",), sharpen=30.0))
    images = all_two_valued_images()
    outcome = run(model, images)
    nats = outcome.pixels.nats.double().view(len(images), 4, 3).sum((1, 2))
    assert nats.std() > 0.01  # The probabilities are not uniform.
    assert torch.exp(-nats).sum().item() == pytest.approx(1, abs=1e-5)


def test_mar_probabilities_sum_to_one_along_an_order():
    """p(x) is the product over steps, each of which predicts one sub-patch in a fixed order."""
    model = allow_two_values(
        tiny_model("mar", patch_sizes=(2, 1), generators=("mar",), sharpen=30.0)
    )
    images, order = all_two_valued_images(), [2, 0, 3, 1]
    total = torch.zeros(len(images), dtype=torch.float64)
    for step, token in enumerate(order):
        mask = torch.zeros(len(images), 4, dtype=torch.bool)
        mask[:, order[step:]] = True
        outcome = run(model, images, masks=lambda level, rows, mask=mask: mask)
        nats = outcome.pixels.nats.double().sum(1).view(len(images), -1)
        total += nats[:, sorted(order[step:]).index(token)]
    assert torch.exp(-total).sum().item() == pytest.approx(1, abs=1e-5)


def test_ar_a_later_value_never_changes_an_earlier_logit():
    model = tiny_model("ar", patch_sizes=(8, 4, 1))
    image = random_images(1)
    before = run(model, image).pixels.nats
    # The outcome's rows are in the order of generation: patches, then their pixels.
    pixels = [
        (py + y, px + x) for py in (0, 4) for px in (0, 4) for y in range(4) for x in range(4)
    ]
    for index in (0, 5, 15, 16, 31, 40, 63):
        for channel in range(3):
            changed = image.clone()
            y, x = pixels[index]
            changed[0, channel, y, x] = (int(changed[0, channel, y, x]) + 100) % 256
            after = run(model, changed).pixels.nats
            flat_before, flat_after = before.flatten(), after.flatten()
            position = 3 * index + channel
            assert flat_before[:position].equal(flat_after[:position])
            assert not flat_before[position].equal(flat_after[position])
            if position < 191:
                assert not flat_before[position + 1 :].equal(flat_after[position + 1 :])


def test_mar_masked_sub_patches_are_not_read():
    model = tiny_model("mar", patch_sizes=(8, 4, 1))
    image, mask = random_images(1), torch.tensor([[True, False, True, False]])

    def masks(level, rows):
        return mask if level == 0 else torch.ones(len(rows.image), 16, dtype=torch.bool)

    outputs = []
    model.levels[0].register_forward_hook(
        lambda level, inputs, conditions: outputs.append(conditions.values_NCD)
    )
    hidden, visible = image.clone(), image.clone()
    hidden[:, :, :4, :4] = 255 - hidden[:, :, :4, :4]
    visible[:, :, :4, 4:] = 255 - visible[:, :, :4, 4:]
    for images in (image, hidden, visible):
        run(model, images, masks)
    assert outputs[1].equal(outputs[0])
    assert not outputs[2].equal(outputs[0])


def test_weights_of_an_image_sum_to_one(kind):
    model = tiny_model(kind)
    masks = training_masks([level.tokens for level in model.config.levels], _generator())
    outcome = run(model, images_for(model, 3), masks)
    for values in (outcome.pixels, *outcome.guides):
        total = torch.zeros(3).index_add_(0, values.image, values.weight)
        assert total.tolist() == pytest.approx([1, 1, 1], rel=1e-5)


def test_every_parameter_has_a_gradient(kind):
    """The null embedding has one too: no weight is left out of the loss."""
    model = tiny_model(kind)
    masks = training_masks([level.tokens for level in model.config.levels], _generator())
    labels = torch.tensor([0, NO_CLASS, 2])
    outcome = model(images_for(model, 3), labels, masks=masks, guides=exact_guides)
    training_loss(outcome, red_weight=5.0).backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused


def test_training_loss_weighs_the_red_channel():
    outcome = run(tiny_model("ar"), random_images(2, size=4))
    red, green, blue = outcome.pixels.nats.mean(0)
    expected = (5 * red + green + blue) / 7
    assert training_loss(outcome, red_weight=5.0).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("label", [-2, 4])
def test_an_unknown_class_is_an_error(label):
    with pytest.raises(FractalError, match=r"0 … 3"):
        run(tiny_model("ar"), random_images(1, size=4), labels=torch.tensor([label]))


@pytest.mark.parametrize(
    "images",
    [random_images(1), random_images(1, size=4).float(), random_images(1, size=4)[:, :1]],
)
def test_images_that_do_not_fit_are_an_error(images):
    with pytest.raises(FractalError, match=r"\(batch, 3, 4, 4\) uint8"):
        run(tiny_model("ar"), images)


PUBLISHED = {
    "ar-64": 442_068_224,
    "mar-64": 431_995_648,
    "mar-b": 186_300_224,
    "mar-l": 437_000_064,
    "mar-h": 849_586_240,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    with torch.device("meta"):
        model = FractalModel(load_params(SHIPPED).size(name).model)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["ar-64-two-level", "mar-64-two-level"])
def test_two_level_ablations_go_from_the_image_to_the_pixel(name):
    config = load_params(SHIPPED).size(name).model
    assert [level.tokens for level in config.levels] == [4096]


def test_initialisation_is_the_published_one():
    model = tiny_model("guided", widths=(64, 64, 64, 32), sharpen=1.0)
    assert model.class_embedding.weight.std().item() == pytest.approx(0.02, rel=0.2)
    for level in model.levels:
        assert level.positions.std().item() == pytest.approx(0.02, rel=0.2)
        bound = math.sqrt(6 / sum(level.blocks[0].attention.qkv.weight.shape))
        assert 0.95 * bound < level.blocks[0].attention.qkv.weight.abs().max() <= bound
        assert not level.blocks[0].attention.qkv.bias.any()
        assert (level.norm_in.weight == 1).all()


def test_initialisation_depends_on_the_generator_alone():
    torch.manual_seed(5)
    one = tiny_model("mar")
    torch.manual_seed(6)
    other = tiny_model("mar")
    assert all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    initialise(other, torch.Generator().manual_seed(2))
    assert not one.null_embedding.equal(other.null_embedding)


def test_configuration_survives_json():
    config = tiny_model("guided").config
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("kind", ["mar", "guided", "mar above ar", "ar above mar"])
def test_padding_rows_change_nothing(kind, monkeypatch):
    """A row's values stay bit-identical; its part of the gradients is equal up to rounding."""
    model = tiny_model(kind)
    images = images_for(model, 5)
    outcomes, gradients = [], []
    for padding in (0, 3):
        monkeypatch.setattr(fractal, "padding_rows", lambda rows, count=padding: count)
        masks = training_masks([4, 4, 4], torch.Generator().manual_seed(0))
        outcome = run(model, images, masks)
        outcomes.append([v.nats for v in (outcome.pixels, *outcome.guides)])
        masks = training_masks([4, 4, 4], torch.Generator().manual_seed(0))
        model.zero_grad()
        labels = torch.zeros(len(images), dtype=torch.long)
        outcome = model(images, labels, masks=masks, guides=exact_guides)
        training_loss(outcome, red_weight=1.0).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(a.equal(b) for a, b in zip(*outcomes, strict=True))
    for unpadded, padded in zip(*gradients, strict=True):
        torch.testing.assert_close(padded, unpadded, rtol=1e-4, atol=1e-6)


def test_sub_patches_have_their_places_in_the_image():
    rows = Rows.whole_images(2, torch.device("cpu"))
    row, token = torch.tensor([0, 1, 1]), torch.tensor([1, 2, 3])
    inner = rows.sub_patches(row, token, 2, 4)
    assert inner.image.tolist() == [0, 1, 1]
    assert list(zip(inner.top.tolist(), inner.left.tolist(), strict=True)) == [
        (0, 4),
        (4, 0),
        (4, 4),
    ]
    assert inner.index(8, 4).tolist() == [1, 2, 3]
