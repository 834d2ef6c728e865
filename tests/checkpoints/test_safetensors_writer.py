import resource

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tensorpress.checkpoints.safetensors_writer import (
    CODES,
    divide_into_shards,
    open_shard_writer,
)
from tensorpress.errors import InvalidArgumentError

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
tensors = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(shapes, st.sampled_from(list(CODES))),
    max_size=6,
)


@given(tensors, st.randoms(use_true_random=False))
def test_what_is_written_in_any_order_is_read_by_safetensors(tmp_path_factory, kinds, order):
    path = tmp_path_factory.mktemp("shard") / "a.safetensors"
    values = {name: (5 * torch.rand(shape)).to(dtype) for name, (shape, dtype) in kinds.items()}
    names = list(values)
    order.shuffle(names)
    with open_shard_writer(path, {name: t.to("meta") for name, t in values.items()}) as shard:
        for name in names:
            shard.write(name, values[name])
    result = load_file(path)
    assert result.keys() == values.keys()
    for name, expected in values.items():
        assert result[name].dtype == expected.dtype
        assert result[name].shape == expected.shape
        assert torch.equal(*(t.to(torch.complex128) for t in (result[name], expected)))


def test_tensors_that_are_not_contiguous_are_written_right(tmp_path):
    value = torch.arange(6.0).reshape(2, 3).T
    with open_shard_writer(tmp_path / "a", {"x": value}) as shard:
        shard.write("x", value)
    assert load_file(tmp_path / "a")["x"].tolist() == value.tolist()


@pytest.mark.parametrize("value", [torch.ones(3), torch.ones(2).half()])
def test_another_shape_or_type_than_promised_is_an_error(tmp_path, value):
    with (
        pytest.raises(InvalidArgumentError, match="'x'"),
        open_shard_writer(tmp_path / "a", {"x": torch.ones(2)}) as shard,
    ):
        shard.write("x", value)
    assert not list(tmp_path.iterdir())


def test_a_tensor_left_out_leaves_no_file(tmp_path):
    with (
        pytest.raises(InvalidArgumentError, match="'y' was not written"),
        open_shard_writer(tmp_path / "a", dict.fromkeys("xy", torch.ones(2))) as shard,
    ):
        shard.write("x", torch.ones(2))
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_an_error_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    value = torch.ones(100_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with (
            pytest.raises(InvalidArgumentError, match="cannot be written"),
            open_shard_writer(tmp_path / "a", {"x": value}) as shard,
        ):
            shard.write("x", value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_tensors_are_divided_in_order_into_files_within_the_limit():
    sizes = {"a": 10, "b": 6, "huge": 40, "c": 16, "d": 8, "e": 8}
    values = {name: torch.empty(size, dtype=torch.uint8) for name, size in sizes.items()}
    shards = divide_into_shards(values, 16)
    assert list(map(list, shards.values())) == [["a", "b"], ["huge"], ["c"], ["d", "e"]]
    assert list(shards)[1] == "model-00002-of-00004.safetensors"


def test_a_model_within_the_limit_is_one_file():
    values = dict.fromkeys("ab", torch.empty(2))
    assert divide_into_shards(values, 16) == {"model.safetensors": values}
    assert len(divide_into_shards(values, 15)) == 2
