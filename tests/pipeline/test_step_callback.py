"""A callback sees every step of level 0 and can end the sampling."""

from __future__ import annotations

import pytest
import torch


def test_the_callback_sees_the_image_grow(pipe):
    seen = []

    def record(pipeline, step, steps, values):
        assert pipeline is pipe
        seen.append((step, steps, values))

    images = pipe(["cat", "dog"], batch_size=1, output_type="pt", callback_on_step_end=record)
    assert images.equal(pipe(["cat", "dog"], output_type="pt"))
    assert [(step, steps) for step, steps, _ in seen] == [(1, 3), (2, 3), (3, 3)] * 2
    for number, (_, _, last) in ((0, seen[2]), (1, seen[5])):
        assert last["numbers"] == range(number, number + 1)
        assert last["images"].equal(images[number : number + 1]) and not last["hidden"].any()
    first, second = seen[0][2], seen[1][2]
    assert 0 < int(second["hidden"].sum()) < int(first["hidden"].sum()) < 16
    done = ~first["hidden"]
    assert first["images"].permute(0, 2, 3, 1)[done].equal(images[:1].permute(0, 2, 3, 1)[done])


def test_known_pixels_are_not_hidden(pipe):
    hidden = []
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2] = True
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    pipe.edit(
        image,
        mask,
        callback_on_step_end=lambda p, step, steps, values: hidden.append(values["hidden"][0]),
    )
    assert hidden and not any(h[2:].any() for h in hidden)


def test_an_exception_of_the_callback_ends_the_sampling(pipe):
    calls = []

    def stop(pipeline, step, steps, values):
        calls.append(step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("cat", callback_on_step_end=stop)
    assert calls == [1]
