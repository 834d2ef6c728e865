"""Tensors that are computed when they are used."""

import torch
from torch import nn
from torch.nn import functional

from tensorpress.schemes.press_layer import press_layer
from tensorpress.utils.lazy_tensor import defer


class Counted:
    """Makes a tensor, and knows how often."""

    def __init__(self, value):
        self.value, self.times = value, 0

    def __call__(self):
        self.times += 1
        return self.value


def test_dtype_and_device_do_not_compute_the_tensor():
    make = Counted(torch.ones(3, 2, dtype=torch.float16))
    result = defer(make, like=make.value)
    assert isinstance(result, torch.Tensor)
    assert (result.dtype, result.device) == (torch.float16, torch.device("cpu"))
    assert make.times == 0
    assert result.shape == (3, 2)
    assert make.times == 1


def test_functions_methods_and_operators_use_the_values():
    make = Counted(torch.randn(3, 2))
    result, x = defer(make, like=make.value), torch.randn(4, 2)
    assert torch.equal(functional.linear(x, result), functional.linear(x, make.value))
    assert torch.equal(x @ result.T, x @ make.value.T)
    assert torch.equal(torch.cat([result, make.value]), torch.cat([make.value, make.value]))
    assert torch.equal(result[0], make.value[0])
    assert type(result + 1) is torch.Tensor


def test_gradients_reach_the_parameters():
    parameter = nn.Parameter(torch.randn(3, 2))
    result = defer(lambda: 2 * parameter, like=parameter)
    functional.linear(torch.ones(1, 2), result).sum().backward()
    assert torch.equal(parameter.grad, torch.full((3, 2), 2.0))


class Reads(nn.Module):
    """Casts to the dtype of a layer's weight, and computes with that of another."""

    def __init__(self):
        super().__init__()
        self.cast = press_layer(nn.Linear(6, 6), "channel_svd", 2)
        self.used = press_layer(nn.Linear(6, 6), "channel_svd", 2)

    def forward(self, x):
        x = self.cast(x.to(self.cast.weight.dtype))
        return functional.linear(x, self.used.weight, self.used.bias)


def test_a_module_that_reads_a_pressed_weight_is_exported_and_compiled():
    model, x = Reads().eval(), torch.randn(3, 6)
    expected = model.used(model.cast(x))
    program = torch.export.export(model, (x,)).module()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for run in (model, program, compiled):
        torch.testing.assert_close(run(x), expected)
