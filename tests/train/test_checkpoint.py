import errno
import os
import platform
import random
import resource

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tensorpress.errors import CorruptFileError, InvalidArgumentError, ModelMismatchError
from tensorpress.train import TrainConfig, fit
from tensorpress.train.checkpoint import (
    random_state,
    read_checkpoint,
    restore_random_state,
    write_checkpoint,
)

BATCHES = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))]
CONFIG = TrainConfig(epochs=1, lr=0.1)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "run.pt"
    fit(nn.Linear(3, 2), BATCHES, CONFIG, checkpoint=path)
    return path.read_bytes()


def test_writing_leaves_only_the_checkpoint(tmp_path):
    fit(nn.Linear(3, 2), BATCHES, CONFIG, checkpoint=tmp_path / "deep" / "run.pt")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["run.pt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(b"old")
    with pytest.raises(AttributeError, match=r"pickle|local"):
        write_checkpoint(path, {"model": lambda: None})
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("size", [100, 24_800, 25_000, 300_000])
def test_a_disk_that_is_full_is_reported_and_keeps_the_old_file(tmp_path, size):
    path = tmp_path / "run.pt"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(4 * size, 100_000), limits[1]))
    try:
        with pytest.raises(InvalidArgumentError, match=r"run\.pt cannot be written: File too"):
            write_checkpoint(path, {"model": torch.zeros(size)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_ends_with_a_clear_error_where_the_disk_is_full(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InvalidArgumentError, match=r"run\.pt cannot be written: No space left"):
        fit(nn.Linear(3, 2), BATCHES, CONFIG, checkpoint=tmp_path / "run.pt")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_was_writing_is_removed_at_the_next_start(tmp_path):
    path = tmp_path / "run.pt"
    leftover = tmp_path / f".run.pt.0123abcd.{platform.node()}@99999999.tmp"
    other = tmp_path / f".other.pt.0123abcd.{platform.node()}@99999999.tmp"
    for file in (leftover, other):
        file.write_bytes(b"half")
    fit(nn.Linear(3, 2), BATCHES, CONFIG, checkpoint=path)
    assert sorted(tmp_path.iterdir()) == [other, path]


@settings(max_examples=40)
@given(where=st.floats(0, 0.999))
def test_truncated_file_is_named(good, tmp_path_factory, where):
    path = tmp_path_factory.mktemp("cut") / "run.pt"
    path.write_bytes(good[: int(where * len(good))])
    with pytest.raises(CorruptFileError, match=r"run\.pt is not a training checkpoint"):
        read_checkpoint(path)


@settings(max_examples=60)
@given(where=st.floats(0, 0.999), flip=st.integers(1, 255))
def test_altered_byte_is_noticed_or_changes_nothing(good, tmp_path_factory, where, flip):
    # A zip archive has bytes without meaning, such as time stamps and padding.
    path = tmp_path_factory.mktemp("flip") / "run.pt"
    altered = bytearray(good)
    altered[int(where * len(good))] ^= flip
    path.write_bytes(altered)
    fresh = nn.Linear(3, 2)
    reference = nn.Linear(3, 2)
    try:
        history = fit(fresh, BATCHES, CONFIG, checkpoint=path)
    except CorruptFileError:
        return
    path.write_bytes(good)
    assert history == fit(reference, BATCHES, CONFIG, checkpoint=path)
    assert torch.equal(fresh.weight, reference.weight)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(CorruptFileError, match="not a training checkpoint"):
        read_checkpoint(path)
    path.write_text("epochs: 3")
    with pytest.raises(CorruptFileError, match="not a training checkpoint"):
        read_checkpoint(path)


def test_no_code_in_a_file_is_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (pytest.fail, ("code from a checkpoint was run",))

    torch.save({"model": Attack()}, tmp_path / "run.pt")
    with pytest.raises(CorruptFileError):
        read_checkpoint(tmp_path / "run.pt")


def test_other_configuration_names_every_key_and_both_values(tmp_path, good):
    path = tmp_path / "run.pt"
    path.write_bytes(good)
    other = TrainConfig(epochs=4, lr=0.1, optimizer="sgd", distill={"weight": 0.5})
    with pytest.raises(InvalidArgumentError) as caught:
        fit(nn.Linear(3, 2), BATCHES, other, teacher=nn.Linear(3, 2), checkpoint=path)
    message = str(caught.value)
    assert "epochs is 1 there and 4 here" in message
    assert "optimizer is 'adam' there and 'sgd' here" in message
    assert "distill.weight is None there and 0.5 here" in message
    assert "lr" not in message


def test_a_checkpoint_of_other_data_is_refused(tmp_path, good):
    path = tmp_path / "run.pt"
    path.write_bytes(good)
    with pytest.raises(InvalidArgumentError, match="batches per epoch is 1 there and 2 here"):
        fit(nn.Linear(3, 2), BATCHES * 2, CONFIG, checkpoint=path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 4), r"the shape of weight is \(2, 3\) in the checkpoint and \(4, 3\)"),
        (nn.Linear(3, 2, bias=False), r"the shape of bias is \(2,\) in the checkpoint and absent"),
        (
            nn.Sequential(nn.Linear(3, 2)),
            r"the shape of weight is \(2, 3\) in the checkpoint and absent",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, good, model, message):
    path = tmp_path / "run.pt"
    path.write_bytes(good)
    with pytest.raises(ModelMismatchError, match=message):
        fit(model, BATCHES, CONFIG, checkpoint=path)


def test_a_checkpoint_of_other_trainable_parameters_is_refused(tmp_path, good):
    path = tmp_path / "run.pt"
    path.write_bytes(good)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    with pytest.raises(ModelMismatchError, match="trainable parameters"):
        fit(model, BATCHES, CONFIG, checkpoint=path)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(InvalidArgumentError, match="the path of a checkpoint file"):
        fit(nn.Linear(3, 2), BATCHES, CONFIG, checkpoint=tmp_path)


def test_random_state_is_that_of_every_generator(tmp_path):
    generator = torch.Generator().manual_seed(5)

    def draw():
        legacy = np.random.rand()  # noqa: NPY002 (that generator is the one under test)
        values = [random.random(), legacy, torch.rand(()), torch.rand((), generator=generator)]
        return list(map(float, values))

    write_checkpoint(tmp_path / "state", {"random": random_state([generator])})
    expected = draw()
    state = torch.load(tmp_path / "state", weights_only=True)["random"]
    restore_random_state(state, [generator])
    assert draw() == expected
