"""What a layer is said to be, why one cannot be taken apart, and its canonical kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_configs import Case, cases
from torch import nn
from torch.nn.utils import prune

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.canonical_kernel import kernel_to_weight, layer_kernel
from tensorpress.schemes.layer_spec import KINDS, LayerSpec, describe_layer, refuse_layer
from tensorpress.schemes.registry import rank_schemes, scheme

KIND_NAMES = [kind.__name__ for kind in KINDS]
old_style = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


class SamePadded(nn.Conv2d):
    """Pads its input itself, as the convolutions of some model collections do."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


class Standardized(nn.Conv2d):
    """Changes its weight on the way, in the hook that torch's own forward pass calls."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Renamed(nn.Conv2d):
    """Adds nothing that a forward pass sees."""


def linear(change=None):
    layer = nn.Linear(4, 3)
    if change is not None:
        change(layer)
    return layer


def with_weight(dtype):
    weight = nn.Parameter(torch.zeros(3, 4).to(dtype), requires_grad=False)
    return linear(lambda layer: setattr(layer, "weight", weight))


def with_tensor_as_bias():
    layer = nn.Linear(4, 3)
    del layer.bias
    layer.bias = torch.ones(3)
    return layer


def wrapped_in_place():
    layer = nn.Linear(4, 3)
    inner = layer.forward
    layer.forward = lambda x: 2 * inner(x)
    return layer


REFUSED = {
    "parametrized": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
        "parametrized",
    ),
    "spectral norm": (
        lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 3, 3)),
        "parametrized",
    ),
    "old spectral norm": (
        lambda: nn.utils.spectral_norm(nn.Linear(4, 3)),
        r"not a plain parameter \(weight norm",
    ),
    "pruned": (lambda: prune.l1_unstructured(linear(), "weight", 0.5), "not a plain parameter"),
    "lazy": (lambda: nn.LazyConv2d(3, 3), "no shape yet: run the model once"),
    "integers": (lambda: with_weight(torch.int8), r"torch\.int8, not floating point"),
    "complex": (lambda: with_weight(torch.complex64), r"torch\.complex64, not floating point"),
    "eight bits": (
        lambda: with_weight(torch.float8_e4m3fn),
        r"torch\.float8_e4m3fn, a dtype for storage only",
    ),
    "own padding": (lambda: SamePadded(4, 3, 3), "a Conv2d with an overridden forward pass"),
    "own inner pass": (lambda: Standardized(4, 3, 3), "a Conv2d with an overridden forward pass"),
    "wrapped in place": (wrapped_in_place, "a Linear with an overridden forward pass"),
    "attention": (lambda: nn.MultiheadAttention(8, 2).out_proj, "MultiheadAttention reads"),
    "empty": (lambda: nn.Linear(4, 0), "weight is empty"),
    "bias no parameter": (with_tensor_as_bias, "bias is not a plain parameter"),
    "buffer": (
        lambda: linear(lambda layer: layer.register_buffer("scale", torch.ones(1))),
        "also has 'scale'",
    ),
    "adapter": (
        lambda: linear(lambda layer: layer.add_module("lora", nn.Linear(4, 3))),
        "also has 'lora'",
    ),
    "max_norm": (lambda: nn.Embedding(4, 3, max_norm=1.0), "max_norm changes its vectors"),
    "another class": (
        lambda: nn.BatchNorm2d(3),
        "only layers of these classes can be: Linear, Embedding, Conv1d",
    ),
    "a container": (
        lambda: nn.Sequential(nn.Linear(3, 3)),
        "only layers of these classes can be: Linear, Embedding, Conv1d",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_apart_is_told_with_the_reason(name):
    make, reason = REFUSED[name]
    layer = make()
    assert refuse_layer(layer) is not None
    with pytest.raises(InvalidArgumentError, match=f"cannot be pressed: .*{reason}"):
        describe_layer(layer)
    with pytest.raises(InvalidArgumentError, match=reason):
        scheme("channel_svd").press(layer, 1)


@old_style
def test_old_weight_norm_is_refused_until_it_is_removed():
    layer = nn.utils.weight_norm(nn.Linear(4, 3))
    assert "weight norm" in refuse_layer(layer)
    nn.utils.remove_weight_norm(layer)
    assert refuse_layer(layer) is None


@pytest.mark.parametrize(
    "hook",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_are_refused_until_they_are_removed(hook):
    layer = nn.Linear(4, 3)
    handle = getattr(layer, hook)(lambda *_: None)
    assert "hooks" in refuse_layer(layer)
    handle.remove()
    assert refuse_layer(layer) is None


def test_a_lazy_layer_can_be_pressed_once_it_has_run():
    layer = nn.LazyLinear(3)
    layer(torch.ones(1, 5))
    assert describe_layer(layer) == describe_layer(nn.Linear(5, 3))


def test_a_subclass_that_computes_the_same_is_its_base():
    assert describe_layer(Renamed(4, 3, 3)) == describe_layer(nn.Conv2d(4, 3, 3))


def test_the_refusal_shows_the_layer():
    with pytest.raises(InvalidArgumentError, match=r"BatchNorm1d\(7, eps=.*\) cannot be pressed"):
        describe_layer(nn.BatchNorm1d(7))


def test_a_layer_without_values_has_costs_and_ranks_but_cannot_be_pressed():
    conv, linear = nn.Conv2d(16, 32, 3, device="meta"), nn.Linear(16, 32, device="meta")
    for name in rank_schemes():
        layer, sizes = (linear, (8,)) if name == "pivoted_svd" else (conv, (8, 8))
        ranks = scheme(name).choose_ranks(layer, 0.5)
        assert scheme(name).cost(layer, ranks, sizes) == scheme(name).cost(layer, 0.5, sizes)
        with pytest.raises(InvalidArgumentError, match="weight is on the meta device"):
            scheme(name).press(layer, ranks)
    with pytest.raises(InvalidArgumentError, match="weight is on the meta device"):
        scheme("tucker2").choose_ranks(conv, "evbmf")


def test_a_spec_alone_has_costs_but_no_spectra():
    spec = describe_layer(nn.Conv2d(16, 32, 3))
    assert scheme("tucker2").cost(spec, 0.5, (8, 8)).params == 8 * 16 + 9 * 8 * 16 + 16 * 32 + 32
    with pytest.raises(InvalidArgumentError, match="'evbmf' needs the layer itself"):
        scheme("tucker2").choose_ranks(spec, "evbmf")


def test_every_attribute_of_a_convolution_is_described():
    layer = nn.ConvTranspose2d(
        4,
        6,
        (3, 2),
        stride=(3, 2),
        padding=(1, 0),
        output_padding=(2, 1),
        groups=2,
        dilation=(1, 2),
    )
    assert describe_layer(layer) == LayerSpec(
        "ConvTranspose2d",
        inputs=4,
        outputs=6,
        groups=2,
        kernel=(3, 2),
        stride=(3, 2),
        padding=(1, 0),
        dilation=(1, 2),
        output_padding=(2, 1),
        bias=True,
    )
    padded = nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular", bias=False)
    spec = describe_layer(padded)
    assert (spec.padding, spec.padding_mode, spec.bias) == ((2,), "circular", False)
    assert describe_layer(nn.Conv2d(4, 6, 3, padding="valid")).padding == (0, 0)


def test_every_attribute_of_an_embedding_is_described():
    layer = nn.Embedding(9, 4, padding_idx=-1, sparse=True, scale_grad_by_freq=True)
    assert describe_layer(layer) == LayerSpec(
        "Embedding", 9, 4, padding_idx=8, sparse=True, scale_grad_by_freq=True
    )


@pytest.mark.parametrize("kind", KIND_NAMES)
@settings(max_examples=12)
@given(data=st.data())
def test_shapes_and_parameters_are_those_of_the_layer(kind, data):
    case = data.draw(cases(kind))
    spec = describe_layer(case.layer)
    assert spec.weight_shape == case.layer.weight.shape
    assert spec.params == sum(p.numel() for p in case.layer.parameters())


@pytest.mark.parametrize("kind", KIND_NAMES)
@settings(max_examples=12)
@given(data=st.data())
def test_kernel_and_weight_are_views_of_each_other(kind, data):
    case = data.draw(cases(kind))
    spec, weight = describe_layer(case.layer), case.layer.weight
    kernel = layer_kernel(case.layer, spec)
    assert kernel.shape == spec.kernel_shape
    assert kernel.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
    again = kernel_to_weight(kernel, spec)
    assert torch.equal(again, weight)
    assert again.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()


@pytest.mark.parametrize("kind", KIND_NAMES)
@settings(max_examples=12)
@given(data=st.data())
def test_output_sizes_are_those_of_the_layer(kind, data):
    case: Case = data.draw(cases(kind))
    spec = describe_layer(case.layer)
    found = spec.output_sizes(case.sizes, tuple(range(spec.order)))
    shape = case.layer(case.example).shape
    assert found == (tuple(shape[2:]) if spec.order else case.sizes)


def test_the_kernel_is_ordered_by_group_output_input_and_space():
    conv = nn.Conv2d(4, 6, (2, 3), groups=2)
    kernel = layer_kernel(conv, describe_layer(conv))
    assert kernel[1, 2, 0, 1, 2] == conv.weight[5, 0, 1, 2]
    transposed = nn.ConvTranspose2d(4, 6, (2, 3), groups=2)
    kernel = layer_kernel(transposed, describe_layer(transposed))
    assert kernel[1, 2, 0, 1, 2] == transposed.weight[2, 2, 1, 2]
    table = nn.Embedding(5, 3)
    assert layer_kernel(table, describe_layer(table))[0, 2, 4] == table.weight[4, 2]


def test_sizes_too_small_for_the_kernel_have_no_cost():
    layer = nn.Conv2d(4, 6, 3)
    with pytest.raises(InvalidArgumentError, match=r"no output for an input of \(8, 2\)"):
        scheme("tucker2").cost(layer, 1, (8, 2))
    with pytest.raises(InvalidArgumentError, match=r"needs the 2 spatial sizes .*, not \(8,\)"):
        scheme("tucker2").cost(layer, 1, (8,))
