import resource

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tensorpress.errors import (
    CorruptFileError,
    DataNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
)
from tensorpress.models import zoo


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


@pytest.fixture
def tensors(path):
    """What a good file for LeNet-300-100 holds, to be changed and written again."""
    zoo.save_weights(zoo.build("lenet300100"), path)
    return load_file(path)


def load(path):
    zoo.load_weights(zoo.build("lenet300100"), path)


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_round_trip_is_exact(name, path):
    saved, loaded = zoo.build(name), zoo.build(name)
    for buffer in saved.buffers():
        buffer.add_(1)
    zoo.save_weights(saved, path)
    zoo.load_weights(loaded, path)
    for key, tensor in saved.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key


def test_a_disk_that_is_full_is_an_error_and_leaves_nothing(path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InvalidArgumentError, match=r"weights\.safetensors cannot be written"):
            zoo.save_weights(zoo.build("lenet300100"), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(path.parent.iterdir())


def test_batch_norm_counters_may_be_missing(path):
    model = zoo.build("resnet20")
    kept = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(kept, path)
    other = zoo.build("resnet20")
    zoo.load_weights(other, path)
    assert torch.equal(model.conv1.weight, other.conv1.weight)


def test_half_precision_weights_are_widened(path):
    model = zoo.build("lenet300100").half()
    zoo.save_weights(model, path)
    other = zoo.build("lenet300100")
    zoo.load_weights(other, path)
    assert other.ip1.weight.dtype == torch.float32
    assert torch.equal(model.ip1.weight.float(), other.ip1.weight)


def test_tied_and_non_contiguous_parameters_are_written(path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].weight = nn.Parameter(torch.rand(3, 3).T)
    model[1].weight = model[0].weight
    zoo.save_weights(model, path)
    written = load_file(path)
    assert torch.equal(written["0.weight"], model[0].weight)
    assert torch.equal(written["1.weight"], model[0].weight)


def test_missing_file(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"nowhere\.safetensors"):
        load(tmp_path / "nowhere.safetensors")
    with pytest.raises(DataNotFoundError):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_file_of_another_format(path, content):
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"weights\.safetensors is not a complete"):
        load(path)


def test_truncated_file(path, tensors):
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptFileError):
        load(path)


def test_misnamed_tensor_is_named_with_the_nearest(path, tensors):
    tensors["fc1.weight"] = tensors.pop("ip1.weight")
    save_file(tensors, path)
    with pytest.raises(ModelMismatchError, match=r"lacks 'ip1\.weight' \(nearest.*'fc1\.weight'"):
        load(path)


def test_surplus_tensor_is_named(path, tensors):
    save_file({**tensors, "ip4.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelMismatchError, match=r"no 'ip4\.weight' \(nearest in the model: 'ip"):
        load(path)


def test_long_lists_of_names_are_cut(path, tensors):
    with pytest.raises(ModelMismatchError, match=r"and \d+ more"):
        zoo.load_weights(zoo.build("resnet20"), path)


def test_wrong_shape_shows_both_shapes(path, tensors):
    save_file({**tensors, "ip2.bias": torch.zeros(101)}, path)
    with pytest.raises(ModelMismatchError, match=r"'ip2\.bias' has shape \(101,\).*\(100,\)"):
        load(path)


def test_integer_weights_are_refused(path, tensors):
    save_file({**tensors, "ip2.bias": torch.zeros(100, dtype=torch.int8)}, path)
    with pytest.raises(ModelMismatchError, match=r"'ip2\.bias' is torch\.int8"):
        load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_named_and_the_model_is_left_alone(path, tensors, value):
    tensors["ip3.bias"][4] = value
    save_file(tensors, path)
    model = zoo.build("lenet300100")
    before = model.ip1.weight.clone()
    with pytest.raises(CorruptFileError, match=r"'ip3\.bias' has NaN"):
        zoo.load_weights(model, path)
    assert torch.equal(model.ip1.weight, before)
