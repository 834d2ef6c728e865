import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tensorpress.data import ImageSet, batches
from tensorpress.errors import InvalidArgumentError
from tensorpress.models import zoo


def numbered(count=50):
    """Images that hold their number, which is their label too."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
    return ImageSet(pixels, torch.arange(count))


def loader(count=50, batch_size=16, *, shuffle=True, augment="shift1", **options):
    return batches(
        numbered(count),
        torch.Tensor.float,
        batch_size,
        shuffle=shuffle,
        augment=augment,
        **options,
    )


def epoch(loaded, number):
    loaded.set_epoch(number)
    return list(loaded)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(x, u) and torch.equal(y, v)
        for (x, y), (u, v) in zip(first, second, strict=True)
    )


@settings(max_examples=25)
@given(st.integers(0, 60), st.integers(1, 70), st.booleans(), st.integers(0, 2**62))
def test_every_image_appears_once_with_its_label(count, batch_size, shuffle, seed):
    loaded = loader(count, batch_size, shuffle=shuffle, seed=seed, augment=None)
    result = list(loaded)
    assert len(result) == len(loaded) == -(-count // batch_size)
    assert all(len(labels) == batch_size for _, labels in result[:-1])
    assert all((x[:, 0, 0, 0] == y).all() for x, y in result)
    labels = [int(label) for _, y in result for label in y]
    assert sorted(labels) == list(range(count))
    assert shuffle or labels == list(range(count))


def test_it_is_a_data_loader_of_float_inputs_and_integer_labels():
    loaded = loader()
    inputs, labels = next(iter(loaded))
    assert isinstance(loaded, DataLoader)
    assert inputs.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_an_epoch_is_a_function_of_seed_and_number():
    whole, resumed = loader(), loader()
    first = [epoch(whole, number) for number in range(3)]
    assert same(first[2], epoch(resumed, 2))
    assert same(first[0], epoch(whole, 0))
    assert not same(first[0], first[1])
    assert not same(first[0], epoch(loader(seed=1), 0))


def test_augmentation_changes_by_epoch_in_a_fixed_order():
    first, second = (epoch(loader(shuffle=False), number) for number in (0, 1))
    assert all(torch.equal(y, v) for (_, y), (_, v) in zip(first, second, strict=True))
    assert not same(first, second)


def test_after_as_many_epochs_as_there_are_variants_the_same_batches_come_again():
    seen = [epoch(loader(variants=2), number) for number in range(4)]
    assert same(seen[0], seen[2])
    assert same(seen[1], seen[3])
    assert not same(seen[0], seen[1])


def test_batches_of_an_epoch_are_augmented_differently():
    same_image = ImageSet(torch.ones(64, 1, 4, 4, dtype=torch.uint8), torch.zeros(64).long())
    first, second = batches(same_image, torch.Tensor.float, 32, shuffle=False, augment="shift1")
    assert not torch.equal(first[0], second[0])


def test_the_global_random_state_is_neither_read_nor_advanced():
    torch.manual_seed(1)
    first, state = epoch(loader(), 0), torch.get_rng_state()
    torch.manual_seed(2)
    assert same(first, epoch(loader(), 0))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_augmentation_comes_before_preprocessing():
    white = ImageSet(torch.full((32, 1, 4, 4), 255, dtype=torch.uint8), torch.zeros(32).long())
    preprocess = zoo.Preprocess(scale=255, mean=(0.5,), std=(0.5,))
    ((inputs, _),) = batches(white, preprocess, 32, shuffle=False, augment="shift1")
    assert inputs.unique().tolist() == [-1.0, 1.0]


def test_the_frames_of_a_clip_are_augmented_alike():
    pixels = torch.arange(16, dtype=torch.uint8).reshape(4, 4).expand(32, 2, 3, 4, 4)
    clips = ImageSet(pixels, torch.zeros(32).long())
    ((augmented, _),) = batches(clips, torch.Tensor.float, 32, shuffle=False, augment="shift1")
    assert augmented.shape == pixels.shape
    assert torch.equal(augmented, augmented[:, :1, :1].expand_as(augmented))
    assert len(augmented.unique(dim=0)) > 1


def test_accelerate_advances_the_epoch_by_itself():
    expected = [epoch(loader(), number) for number in range(3)]
    prepared = Accelerator(cpu=True).prepare(loader())
    assert same(expected[0], list(prepared))
    assert same(expected[1], list(prepared))
    assert same(expected[0], epoch(prepared, 0))
    assert same(expected[2], epoch(prepared, 2))
    assert prepared.total_dataset_length == 50


def test_accelerate_skips_to_the_same_batches():
    expected = epoch(loader(), 1)
    prepared = Accelerator(cpu=True).prepare(loader())
    prepared.set_epoch(1)
    assert same(expected[2:], list(skip_first_batches(prepared, 2)))


def test_processes_share_the_batches_of_one():
    alone = epoch(loader(64), 1)
    shards = [
        prepare_data_loader(loader(64), num_processes=2, process_index=index) for index in (0, 1)
    ]
    for start, shard in enumerate(shards):
        assert same(alone[start::2], epoch(shard, 1))


def test_worker_processes_make_the_same_batches():
    alone = loader()
    with_workers = DataLoader(
        alone.dataset,
        batch_size=alone.batch_size,
        sampler=alone.sampler,
        collate_fn=alone.collate_fn,
        num_workers=1,
        multiprocessing_context="fork",
    )
    assert same(list(alone), list(with_workers))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "at least 1, got 0"),
        ({"seed": -1}, "not be negative"),
        ({"variants": 0}, "variants must be at least 1, got 0"),
        ({"augment": "shift3"}, "unknown augmentation 'shift3': did you mean 'shift"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        loader(**arguments)
