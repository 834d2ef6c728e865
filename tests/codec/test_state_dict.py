"""Named tensors in a file of their own, without a model."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.codec.header import Description, tensor_table
from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.codec.state_dict import load_tensors, save_tensors
from tensorpress.codec.tpz_file import write_file
from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.models import zoo


def test_each_tensor_is_quantized_or_a_half_or_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, quantizer = torch.randn(30, 20), StepQuantizer(-16)
    exact = {
        "large": torch.tensor([1e6, 0.1]),  # more than float16 can hold
        "bfloat16": torch.randn(7).bfloat16(),
        "complex": torch.randn(3, dtype=torch.complex64),
        "count": torch.tensor(70_001),
        "mask": torch.tensor([True, False, True]),
        "none": torch.empty(0, 4),
    }
    halves = {"bias": torch.randn(20), "double": torch.randn(20, dtype=torch.float64)}
    tensors = OrderedDict({"weight": weight, **exact, **halves})
    path = tmp_path / "a.tpz"
    assert save_tensors(tensors, path, {"weight": quantizer}) == path.stat().st_size
    read = load_tensors(path)
    assert list(read) == list(tensors)
    assert {k: v.dtype for k, v in read.items()} == {k: v.dtype for k, v in tensors.items()}
    assert torch.equal(read["weight"], quantizer(weight))
    for name, tensor in exact.items():
        assert torch.equal(read[name], tensor), name
    for name, tensor in halves.items():
        assert torch.equal(read[name], tensor.half().to(tensor.dtype)), name


def test_the_file_of_a_zoo_network_gives_its_state(tmp_path: Path) -> None:
    model = zoo.build("lenet300100")
    tp.save(model, tmp_path / "model.tpz", network="lenet300100")
    read, loaded = load_tensors(tmp_path / "model.tpz"), tp.load(tmp_path / "model.tpz")
    assert read.keys() == model.state_dict().keys()
    assert all(torch.equal(read[name], value) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("tensors", "quantizers", "message"),
    [
        ({"a": torch.ones(2)}, {"b": StepQuantizer(0)}, "a quantizer for 'b', but no such tensor"),
        ({3: torch.ones(2)}, {}, "must be a string, not 3"),
        ({"a": torch.tensor(float("nan"))}, {}, "tensor 'a' has NaN"),
        ({"a": torch.eye(2).to_sparse()}, {}, "tensor 'a' is torch.sparse_coo"),
        ({"a": torch.eye(2).to(torch.float8_e4m3fn)}, {}, "tensor 'a' is torch.float8_e4m3fn"),
        ({"a": nn.Linear(2, 2)}, {}, "'a' is state other than a tensor"),
    ],
)
def test_what_no_file_can_hold_is_named(
    tmp_path: Path, tensors: dict, quantizers: dict, message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        save_tensors(tensors, tmp_path / "a.tpz", quantizers)
    assert not (tmp_path / "a.tpz").exists()


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    one = torch.ones(2)
    description = Description(None, (), tensor_table({"a": one}) * 2)
    write_file(tmp_path / "a.tpz", description, [one, one], [None, None], "range")
    with pytest.raises(ModelMismatchError, match="two tensors of the same"):
        load_tensors(tmp_path / "a.tpz")
