"""The loader gives the same stream for every number of ranks, loader processes and resumes."""

import pickle

import numpy as np
import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.data.loader import Batch, read_batch, train_loader
from fractal_model.data.order import stream_flips, stream_indices
from fractal_model.data.prepared import PreparedSplit, open_prepared
from fractal_model.data.writing import write_prepared

SIZE = 50


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> PreparedSplit:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (SIZE, 4, 4, 3), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("data") / "noise"
    write_prepared(
        folder,
        dataset="noise",
        source="random",
        preprocessing="none",
        resolution=4,
        class_names=("a", "b", "c"),
        splits={"train": [(image, i % 3) for i, image in enumerate(images)]},
    )
    return open_prepared(folder, "train")


def read(split, *, world_size=1, **options) -> list[list[Batch]]:
    """Return all batches of every rank, by rank."""
    return [
        list(train_loader(split, seed=9, rank=rank, world_size=world_size, **options))
        for rank in range(world_size)
    ]


def global_ids(ranks: list[list[Batch]]) -> list[int]:
    return [i for step in zip(*ranks, strict=True) for part in step for i in part.indices.tolist()]


def test_batches_hold_the_images_that_they_name(split):
    images, labels = split.load_all()
    ids = []
    for batch in train_loader(split, seed=9, position=0, batch_size=8, end_position=80):
        assert batch.images.shape == (8, 3, 4, 4) and batch.images.dtype == torch.uint8
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert torch.equal(batch.images, images[batch.indices])
        assert torch.equal(batch.labels, labels[batch.indices])
        ids += batch.indices.tolist()
    assert ids == stream_indices(seed=9, start=0, count=80, size=SIZE).tolist()
    assert sorted(ids[:SIZE]) == list(range(SIZE)), "each image once in the epoch"


def test_resuming_on_other_numbers_of_ranks_keeps_the_order(split):
    """Training uses 2 ranks, then 1, then 4, then 5 with unequal parts of a batch. It stops in the
    middle of epochs, and batches cross the ends of epochs."""
    whole = global_ids(read(split, position=0, batch_size=12, end_position=132))
    pieces = [
        global_ids(read(split, position=start, batch_size=12, end_position=end, world_size=ranks))
        for start, end, ranks in ((0, 36, 2), (36, 60, 1), (60, 96, 4), (96, 132, 5))
    ]
    assert [i for piece in pieces for i in piece] == whole
    assert whole == stream_indices(seed=9, start=0, count=132, size=SIZE).tolist()


def test_flips_depend_on_seed_epoch_and_image_alone(split):
    images, _ = split.load_all()
    options = {"position": 24, "batch_size": 24, "end_position": 144, "flip": True}
    mirrored = stream_flips(seed=9, start=24, count=120, size=SIZE)
    order = stream_indices(seed=9, start=24, count=120, size=SIZE)
    expected = torch.stack(
        [images[i].flip(-1) if f else images[i] for i, f in zip(order, mirrored, strict=True)]
    )
    assert 0 < mirrored.sum() < 120
    for world_size in (1, 2, 4):
        for num_workers in (0, 2) if world_size == 2 else (0,):
            ranks = read(split, world_size=world_size, num_workers=num_workers, **options)
            steps = zip(*ranks, strict=True)
            loaded = torch.cat([part.images for step in steps for part in step])
            assert torch.equal(loaded, expected)


def test_the_last_batch_is_full_and_none_begins_after_the_end(split):
    def loader(position):
        return train_loader(split, seed=9, position=position, batch_size=8, end_position=20)

    assert [len(batch.labels) for batch in loader(0)] == [8, 8, 8]
    assert len(loader(0)) == 3 and len(loader(12)) == 1
    assert list(loader(20)) == list(loader(24)) == []


def test_global_random_state_is_left_alone(split):
    before = torch.get_rng_state()
    list(train_loader(split, seed=9, position=0, batch_size=8, end_position=16, flip=True))
    assert torch.equal(before, torch.get_rng_state())


def test_images_are_read_unmirrored_in_the_order_asked_for(split):
    images, labels = split.load_all()
    batch = read_batch(split, [7, 3, 49])
    assert torch.equal(batch.images, images[[7, 3, 49]])
    assert torch.equal(batch.labels, labels[[7, 3, 49]]) and batch.indices.tolist() == [7, 3, 49]


def test_the_loader_can_be_pickled(split):
    """PyTorch pickles the data set for loader processes that it spawns."""
    loader = train_loader(split, seed=9, position=0, batch_size=8, end_position=8)
    copy = pickle.loads(pickle.dumps(loader.dataset))
    picks = next(iter(loader.batch_sampler))
    copied, expected = copy.__getitems__(picks), loader.dataset.__getitems__(picks)
    assert [example.index for example in copied] == [index for index, _ in picks]
    for one, other in zip(copied, expected, strict=True):
        assert torch.equal(one.image, other.image) and one.label == other.label


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 3, "world_size": 4}, r"^batch_size 3 leaves some .* choose 4 or more$"),
        ({"batch_size": 0}, r"^batch_size 0 leaves some .* choose 1 or more$"),
        ({"rank": 2, "world_size": 2}, r"^rank is 2 of world_size 2"),
        ({"rank": -1}, r"^rank is -1 of world_size 1"),
        ({"world_size": 0}, r"^rank is 0 of world_size 0"),
        ({"position": -1}, r"^seed is 0 and position -1"),
        ({"seed": -1}, r"^seed is -1 and position 0"),
    ],
)
def test_train_loader_refuses_arguments_out_of_range(split, changed, message):
    options = {"seed": 0, "position": 0, "batch_size": 8, "end_position": 8} | changed
    with pytest.raises(FractalError, match=message):
        train_loader(split, **options)
