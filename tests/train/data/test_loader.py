import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ddcat_train.data import Dataset, open_dataset
from ddcat_train.data.augment import paper, plain
from ddcat_train.data.loader import Batch, batches_per_epoch, evaluation_batches, train_batches
from ddcat_train.errors import DataError

Writer = Callable[..., None]

AUGMENT = paper(crop=(8, 9), scale=(0.5, 2.0))


@pytest.fixture
def small(small_folder: Path) -> Dataset:
    return open_dataset("folder", small_folder, "train")


def epoch_of(dataset: Dataset, **changes: int) -> list[Batch]:
    """The batches of one epoch, the second unless it is said, from its batch `first` on."""
    options = {"batch_size": 2, "seed": 3, "epoch": 1, "first": 0} | changes
    count, epoch, first = batches_per_epoch(dataset, options["batch_size"]), options.pop("epoch"), options.pop("first")
    return list(train_batches(dataset, AUGMENT, steps=(epoch + 1) * count, first=epoch * count + first, **options))


def equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.seeds, b.seeds)
        for a, b in zip(one, other, strict=True)
    )


def test_batches_are_of_the_promised_form(small: Dataset) -> None:
    batches = epoch_of(small)
    assert len(batches) == batches_per_epoch(small, 2) == 3
    for batch in batches:
        assert batch.images.shape == (2, 3, 8, 9)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous()
        assert 0 <= batch.images.min() <= batch.images.max() <= 1
        assert batch.labels.shape == (2, 8, 9)
        assert batch.labels.dtype == batch.seeds.dtype == torch.int64
        assert set(batch.labels.unique().tolist()) <= {0, 1, 2, 255}
        assert (batch.seeds >= 0).all()


def test_batches_are_the_same_for_any_number_of_workers_and_any_start(small: Dataset) -> None:
    whole = epoch_of(small)
    assert equal(whole, epoch_of(small))
    assert equal(whole, epoch_of(small, workers=2))
    assert equal(whole[1:], epoch_of(small, first=1))
    assert equal(whole[2:], epoch_of(small, first=2, workers=1))
    assert epoch_of(small, first=3) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_one_stream_goes_over_the_ends_of_epochs(small: Dataset, workers: int) -> None:
    stream = list(train_batches(small, AUGMENT, batch_size=2, seed=3, steps=8, first=1, workers=workers))
    assert equal(stream, [*epoch_of(small, epoch=0)[1:], *epoch_of(small, epoch=1), *epoch_of(small, epoch=2)[:2]])


def test_a_batch_names_its_images(small: Dataset) -> None:
    batches = list(train_batches(small, plain(crop=(10, 12), scale=(1, 1)), batch_size=2, seed=0, steps=3, workers=1))
    assert [int(name) for batch in batches for name in batch.names] == whose(small, batches)


def test_page_locked_memory_is_for_what_goes_to_the_device(small: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = epoch_of(small)[0]
    locked: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: locked.append(tensor) or tensor.clone())
    pinned = batch.pin_memory()
    assert [id(tensor) for tensor in locked] == [id(batch.images), id(batch.labels)]
    assert equal([batch], [pinned])
    assert (pinned.seeds is batch.seeds, pinned.names) == (True, batch.names)


def test_a_share_of_a_batch_is_a_part_of_it(small: Dataset) -> None:
    whole = train_batches(small, AUGMENT, batch_size=4, seed=3, steps=3)
    shares = [train_batches(small, AUGMENT, batch_size=4, seed=3, steps=3, rank_indices=wanted) for wanted in ([0, 3], [1, 2])]
    for batch, first, second in zip(whole, *shares, strict=True):
        for share, places in ((first, [0, 3]), (second, [1, 2])):
            assert torch.equal(share.images, batch.images[places])
            assert torch.equal(share.seeds, batch.seeds[places])
            assert share.names == tuple(batch.names[place] for place in places)


def test_readers_outlive_the_signals_that_stop_a_run(small: Dataset) -> None:
    expected, batches = epoch_of(small), []
    for batch in train_batches(small, AUGMENT, batch_size=2, seed=3, steps=6, first=3, workers=1):
        for reader in multiprocessing.active_children():
            assert reader.pid is not None
            os.kill(reader.pid, signal.SIGTERM)
            os.kill(reader.pid, signal.SIGINT)
        batches.append(batch)
    assert equal(batches, expected)


def test_seed_and_epoch_change_the_batches(small: Dataset) -> None:
    assert not equal(epoch_of(small), epoch_of(small, seed=4))
    assert not equal(epoch_of(small), epoch_of(small, epoch=2))
    seeds = torch.cat([batch.seeds for epoch in range(20) for batch in epoch_of(small, epoch=epoch)])
    assert len(seeds.unique()) == len(seeds)


def test_loading_leaves_the_global_random_states_alone(small: Dataset) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), pickle.dumps(np.random.get_state())
    epoch_of(small)
    epoch_of(small, workers=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert pickle.dumps(np.random.get_state()) == before[1]


def whose(dataset: Dataset, batches: list[Batch]) -> list[int]:
    """Which image each one of a batch is, by its labels: needs an augmentation that at most flips."""
    known = [torch.from_numpy(dataset.read(index).labels).long() for index in range(len(dataset))]
    return [
        next(i for i, image in enumerate(known) if torch.equal(labels, image) or torch.equal(labels, image.flip(-1)))
        for batch in batches
        for labels in batch.labels
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 12])
def test_an_epoch_sees_every_image_and_fills_its_last_batch(small: Dataset, batch_size: int) -> None:
    whole = plain(crop=(10, 12), scale=(1, 1))
    orders = set()
    for epoch in range(4):
        count = batches_per_epoch(small, batch_size)
        batches = list(
            train_batches(small, whole, batch_size=batch_size, seed=0, steps=(epoch + 1) * count, first=epoch * count)
        )
        assert {len(batch.images) for batch in batches} == {batch_size}
        order = whose(small, batches)
        assert sorted(order[:5]) == [0, 1, 2, 3, 4]
        assert order[5:] == (order[:5] * 3)[: len(order) - 5]  # wrapped round into the same order
        assert len(order) - 5 < max(batch_size, 5 + 3)
        orders.add(tuple(order[:5]))
    assert len(orders) > 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_told_in_one_line(small: Dataset, workers: int) -> None:
    small.pairs[2].image.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2\.png") as caught:
        epoch_of(small, workers=workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", [ConnectionResetError, EOFError, FileNotFoundError])
def test_a_reader_that_ends_as_a_batch_is_fetched_is_told_in_one_line(
    small: Dataset, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    def fetch(loader: object) -> None:
        raise fault

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", fetch)
    with pytest.raises(DataError, match=rf"^a process that reads images ended \({fault.__name__} while .*--resume"):
        epoch_of(small)


def test_augmentations_can_be_sent_to_a_worker_that_is_not_forked(small: Dataset) -> None:
    sample = small.read(0)
    image, _ = pickle.loads(pickle.dumps(AUGMENT))(sample, np.random.default_rng(0))
    assert np.array_equal(image, AUGMENT(sample, np.random.default_rng(0))[0])
    assert pickle.loads(pickle.dumps(small)) == small


def test_evaluation_gives_whole_images_in_order(small: Dataset) -> None:
    names, seen = [], []
    for batch_names, images, labels in evaluation_batches(small, batch_size=2):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        names += batch_names
        seen += list(zip(images, labels, strict=True))
    assert names == ["0", "1", "2", "3", "4"]
    for index, (image, labels) in enumerate(seen):
        sample = small.read(index)
        assert np.array_equal((image.permute(1, 2, 0) * 255).round().numpy(), sample.image)
        assert np.array_equal(labels.numpy(), sample.labels)


def test_evaluation_batches_neighbours_of_one_size(small: Dataset, write_image: Writer, write_labels: Writer) -> None:
    write_image(small.pairs[3].image, np.zeros((6, 6, 3), np.uint8))
    write_labels(small.pairs[3].labels, np.zeros((6, 6), np.uint8))
    assert [names for names, _, _ in evaluation_batches(small, batch_size=2)] == [["0", "1"], ["2"], ["3"], ["4"]]


def test_a_limit_spreads_over_the_split(small: Dataset) -> None:
    def names(limit: int) -> list[str]:
        return [name for batch, _, _ in evaluation_batches(small, batch_size=4, limit=limit) for name in batch]

    assert [names(limit) for limit in (1, 2, 3, 5, 9)] == [["2"], ["1", "3"], ["0", "2", "4"], list("01234"), list("01234")]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_of_the_order_stands_in_for_a_corrupt_image_when_asked(small: Dataset, workers: int) -> None:
    def batches(skip: bool, first: int = 0) -> list[Batch]:
        whole = plain(crop=(10, 12), scale=(1, 1))
        return list(
            train_batches(
                small, whole, batch_size=2, seed=0, steps=6, first=first, workers=workers if skip else 0, skip_corrupt=skip
            )
        )

    sound = batches(skip=False)
    order = [name for batch in sound for name in batch.names]  # two epochs of 5, each filled up by its first
    small.pairs[2].image.write_bytes(b"no image")
    small.pairs[4].labels.unlink()
    found = batches(skip=True)
    expected, due = [], []
    for epoch in (order[:5], order[6:11]):
        following = dict(zip(epoch, epoch[1:] + epoch[:1], strict=True))
        for name in (*epoch, epoch[0]):
            taken = name
            while taken in "24":
                taken = following[taken]
            expected.append(taken)
            due += [name] * (taken != name)
    assert [name for batch in found for name in batch.names] == expected
    assert [skipped.name for batch in found for skipped in batch.skipped] == due
    assert len(due) >= 4
    faults = {skipped.name: skipped.fault for batch in found for skipped in batch.skipped}
    assert str(small.pairs[2].image) in faults["2"]
    assert str(small.pairs[4].labels) in faults["4"]
    assert equal(found[2:], batches(skip=True, first=2))
    assert torch.equal(torch.cat([b.seeds for b in found]), torch.cat([b.seeds for b in sound]))  # draws are those of the place
    for one, other in zip(found, sound, strict=True):
        same = [a == b for a, b in zip(one.names, other.names, strict=True)]
        assert torch.equal(one.images[same], other.images[same])


def test_a_data_set_of_corrupt_images_ends(small: Dataset) -> None:
    for pair in small.pairs:
        pair.image.write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"none of the 5 pairs of train can be read, for example: .*\.png is not a readable image"
    ):
        list(train_batches(small, AUGMENT, batch_size=2, seed=0, steps=3, skip_corrupt=True))


def test_evaluation_is_shared_out_in_turn(small: Dataset) -> None:
    def names(**share: int) -> list[str]:
        return [name for batch, _, _ in evaluation_batches(small, batch_size=4, **share) for name in batch]

    assert [names(rank=rank, ranks=2) for rank in range(2)] == [["0", "2", "4"], ["1", "3"]]
    assert [names(limit=2, rank=rank, ranks=3) for rank in range(3)] == [["1"], ["3"], []]
