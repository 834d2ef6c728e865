"""Chains of stock layers for any stages, whatever scheme they come from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_configs import CONVS, TRANSPOSED, cases
from torch import nn

from tensorpress.schemes.chain_builder import PressedLayer, build_chain, dense_layer, fill_chain
from tensorpress.schemes.layer_spec import KINDS, describe_layer
from tensorpress.schemes.pressed_layer import copy_bias
from tensorpress.schemes.stages import Stage, compose

EMPTY = torch.empty(0)
KIND_NAMES = [kind.__name__ for kind in KINDS]
CONV_NAMES = [kind.__name__ for kind in (*CONVS.values(), *TRANSPOSED.values())]


@st.composite
def chains(draw, spec):
    """Stages of any ranks that cover the spatial modes in any order, together or apart."""
    modes = draw(st.permutations(range(spec.order)))
    cuts = sorted(draw(st.lists(st.integers(0, spec.order), max_size=2)))
    covered = [
        tuple(sorted(modes[low:high]))
        for low, high in zip([0, *cuts], [*cuts, spec.order], strict=True)
    ]
    ranks = [spec.in_, *(draw(st.integers(1, 3)) for _ in covered[1:]), spec.out]
    return [
        Stage(spec.groups, ranks[k + 1], ranks[k], stage_modes)
        for k, stage_modes in enumerate(covered)
    ]


@pytest.mark.parametrize("kind", CONV_NAMES)
@settings(max_examples=20)
@given(data=st.data())
def test_any_chain_computes_what_the_kernel_it_composes_to_does(kind, data):
    case = data.draw(cases(kind))
    spec = describe_layer(case.layer)
    stages = data.draw(chains(spec))
    generator = torch.Generator().manual_seed(0)
    kernels = [
        torch.randn(stage.kernel_shape(spec), generator=generator, dtype=torch.float64)
        for stage in stages
    ]
    bias = case.layer.bias
    like = case.layer.weight.detach()
    layers, dense = build_chain(spec, stages, like=like), dense_layer(spec, like=like)
    fill_chain(layers, kernels)
    fill_chain([dense], [compose(kernels, spec.groups)])
    for last in (layers[-1], dense):
        copy_bias(bias, last)
    torch.testing.assert_close(
        nn.Sequential(*layers)(case.example), dense(case.example), atol=1e-9, rtol=1e-9
    )


@pytest.mark.parametrize("kind", KIND_NAMES)
@settings(max_examples=10)
@given(data=st.data())
def test_the_dense_layer_of_a_spec_has_that_spec(kind, data):
    case = data.draw(cases(kind))
    spec = describe_layer(case.layer)
    built = dense_layer(spec, like=case.layer.weight)
    assert type(built) is type(case.layer)
    assert describe_layer(built) == spec
    built.load_state_dict(case.layer.state_dict())
    assert torch.equal(built(case.example), case.layer(case.example))


def test_geometry_goes_where_its_mode_is_covered():
    spec = describe_layer(
        nn.ConvTranspose2d(
            8, 6, (3, 5), stride=(2, 3), padding=(1, 2), output_padding=(0, 1), dilation=(2, 1)
        )
    )
    into, rows, columns, out = build_chain(
        spec,
        [Stage(1, 2, 8), Stage(2, 1, 1, (0,)), Stage(2, 1, 1, (1,)), Stage(1, 6, 2)],
        like=EMPTY,
    )
    assert (type(into), type(out)) == (nn.Conv2d, nn.Conv2d)
    assert (type(rows), type(columns)) == (nn.ConvTranspose2d, nn.ConvTranspose2d)
    for plain in (into, out):
        assert (plain.kernel_size, plain.stride, plain.padding) == ((1, 1), (1, 1), (0, 0))
    assert (rows.kernel_size, rows.stride, rows.padding) == ((3, 1), (2, 1), (1, 0))
    assert (rows.dilation, rows.output_padding, rows.groups) == ((2, 1), (0, 0), 2)
    assert (columns.kernel_size, columns.stride, columns.padding) == ((1, 5), (1, 3), (0, 2))
    assert (columns.dilation, columns.output_padding) == ((1, 1), (0, 1))
    assert [layer.bias is not None for layer in (into, rows, columns, out)] == [False] * 3 + [True]


@pytest.mark.parametrize("padding", ["same", 1])
def test_padding_goes_only_to_stages_that_cover_a_mode(padding):
    spec = describe_layer(nn.Conv2d(4, 6, 3, padding=padding, padding_mode="reflect", bias=False))
    into, core = build_chain(spec, [Stage(1, 2, 4), Stage(1, 6, 2, (0, 1))], like=EMPTY)
    assert (into.padding, into.padding_mode) == ((0, 0), "zeros")
    assert (core.padding, core.padding_mode) == (
        padding if padding == "same" else (1, 1),
        "reflect",
    )
    assert core.bias is None


def test_only_the_first_stage_of_an_embedding_looks_up():
    spec = describe_layer(nn.Embedding(9, 4, padding_idx=2, sparse=True, scale_grad_by_freq=True))
    table, matrix = build_chain(spec, [Stage(1, 3, 9), Stage(1, 4, 3)], like=EMPTY)
    assert isinstance(table, nn.Embedding)
    assert (table.padding_idx, table.sparse, table.scale_grad_by_freq) == (2, True, True)
    assert type(matrix) is nn.Linear
    assert matrix.bias is None


@pytest.mark.parametrize(
    "like", [torch.empty(0, dtype=torch.bfloat16), torch.empty(0, device="meta")], ids=str
)
def test_device_and_dtype_are_given_and_nothing_is_drawn(like):
    spec, before = describe_layer(nn.Linear(5, 3)), torch.get_rng_state()
    layers = build_chain(spec, [Stage(1, 2, 5), Stage(1, 3, 2)], like=like)
    assert torch.equal(torch.get_rng_state(), before)
    assert {(p.dtype, p.device) for m in layers for p in m.parameters()} == {
        (like.dtype, like.device)
    }


def test_values_are_copied_and_converted():
    layer = nn.Linear(3, 2).half()
    kernel, bias = torch.randn(1, 2, 3, dtype=torch.float64), torch.randn(2)
    fill_chain([layer], [kernel])
    copy_bias(bias, layer)
    assert torch.equal(layer.weight, kernel[0].half())
    assert torch.equal(layer.bias, bias.half())
    kernel.zero_()
    assert layer.weight.any()
    assert layer.weight.requires_grad


def test_the_weight_of_half_precision_layers_is_composed_in_full():
    """Sums of 64 products lose digits in half precision, of which the result has only ten."""
    spec, stages = describe_layer(nn.Linear(20, 30)), (Stage(1, 64, 20), Stage(1, 30, 64))
    pressed = PressedLayer(
        spec, stages, scheme="channel_svd", ranks=(64,), like=EMPTY.to(torch.bfloat16)
    )
    for parameter in pressed.parameters():
        nn.init.normal_(parameter)
    first, second = (layer.weight.double() for layer in pressed)
    assert torch.equal(pressed.dense_weight(), (second @ first).to(torch.bfloat16))
    assert not pressed.dense_weight().requires_grad


def test_a_pressed_layer_knows_its_bias_and_shows_its_scheme():
    for bias in (True, False):
        spec = describe_layer(nn.Linear(6, 4, bias=bias))
        stages = (Stage(1, 2, 6), Stage(1, 4, 2))
        pressed = PressedLayer(spec, stages, scheme="channel_svd", ranks=[2], like=EMPTY)
        assert pressed.bias_parameter() is pressed[1].bias
        assert (pressed.ranks, pressed.stages, pressed.relative_error) == ((2,), stages, None)
        assert "channel_svd, ranks=(2,)" in repr(pressed)
