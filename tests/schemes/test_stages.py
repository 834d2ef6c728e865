"""Stages: their cost, and the kernel that a chain of them stands for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_configs import cases
from torch import nn

from tensorpress.measure import count_macs, count_params
from tensorpress.schemes.layer_spec import KINDS, describe_layer
from tensorpress.schemes.stages import (
    Stage,
    axis_kernel,
    compose,
    dense_stage,
    macs,
    params,
    pointwise_kernel,
)


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).double()


@pytest.mark.parametrize("kind", [kind.__name__ for kind in KINDS])
@settings(max_examples=10)
@given(data=st.data())
def test_the_dense_layer_is_a_chain_of_one(kind, data):
    case = data.draw(cases(kind))
    spec = describe_layer(case.layer)
    alone = [dense_stage(spec)]
    assert alone[0].kernel_shape(spec) == spec.kernel_shape
    assert params(spec, alone) == spec.params == count_params(case.layer)
    assert macs(spec, alone, case.sizes) == count_macs(case.layer, [case.example])


def test_a_stage_has_one_entry_along_modes_it_does_not_cover():
    spec = describe_layer(nn.Conv3d(4, 6, (2, 3, 5)))
    stage = Stage(2, 7, 4, (0, 2))
    assert stage.kernel(spec) == (2, 1, 5)
    assert stage.kernel_shape(spec) == (2, 7, 4, 2, 1, 5)
    assert stage.params(spec) == 2 * 7 * 4 * 2 * 5
    assert Stage(1, 3, 4).kernel(spec) == (1, 1, 1)


def test_macs_follow_the_stride_stage_by_stage():
    """The vertical stride halves the rows only from the stage on that covers them."""
    spec = describe_layer(nn.Conv2d(4, 6, (3, 5), stride=(2, 3), padding=(1, 2), bias=False))
    chain = [Stage(1, 2, 4), Stage(1, 2, 2, (0,)), Stage(1, 2, 2, (1,)), Stage(1, 6, 2)]
    expected = [16 * 18 * 2 * 4, 8 * 18 * 2 * 2 * 3, 8 * 6 * 2 * 2 * 5, 8 * 6 * 6 * 2]
    assert macs(spec, chain, (16, 18)) == sum(expected)
    assert params(spec, chain) == 2 * 4 + 12 + 20 + 12


def test_macs_of_a_transposed_convolution_are_counted_at_its_input():
    spec = describe_layer(nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1, padding=1))
    chain = [Stage(1, 2, 4), Stage(1, 2, 2, (0,)), Stage(1, 6, 2)]
    assert macs(spec, chain, (10,)) == 10 * 8 + 10 * 12 + 20 * 12


def test_a_look_up_is_free_and_what_follows_is_not():
    spec = describe_layer(nn.Embedding(100, 8))
    assert macs(spec, [dense_stage(spec)], (5,)) == 0
    assert macs(spec, [Stage(1, 3, 100), Stage(1, 8, 3)], (5,)) == 5 * 3 * 8


def test_two_matrices_compose_to_their_product():
    first, second = randn(3, 4, 5), randn(3, 6, 4)
    torch.testing.assert_close(compose([first, second], 3), second @ first)


def test_composing_contracts_channels_and_keeps_space():
    into, core, out = randn(2, 3, 5, 1, 1), randn(2, 4, 3, 3, 2), randn(2, 6, 4, 1, 1)
    expected = torch.einsum("gri,gsrxy,gos->goixy", into[..., 0, 0], core, out[..., 0, 0])
    torch.testing.assert_close(compose([into, core, out], 2), expected)


def test_separate_spatial_modes_compose_to_their_outer_product():
    rows, columns = randn(1, 4, 3, 5, 1), randn(1, 2, 4, 1, 7)
    expected = torch.einsum("rix,ory->oixy", rows[0, ..., 0], columns[0, :, :, 0])
    torch.testing.assert_close(compose([rows, columns], 1)[0], expected)


def test_depthwise_kernels_compose_to_a_sum_of_rank_one_terms():
    """Two groups of three terms: the layers between have six groups of one channel."""
    into, out = randn(2, 3, 4, 1, 1), randn(2, 5, 3, 1, 1)
    rows, columns = randn(6, 1, 1, 3, 1), randn(6, 1, 1, 1, 2)
    found = compose([into, rows, columns, out], 2)
    expected = torch.einsum(
        "gri,grx,gry,gor->goixy",
        into[..., 0, 0],
        rows.reshape(2, 3, 3),
        columns.reshape(2, 3, 2),
        out[..., 0, 0],
    )
    torch.testing.assert_close(found, expected)


def test_more_groups_than_the_layers_are_blocks_on_a_diagonal():
    blocks = randn(2, 3, 2)
    found = compose([blocks], 1)
    assert torch.equal(found[0], torch.block_diag(*blocks))


def test_composing_keeps_the_dtype_and_is_differentiable():
    factors = [randn(1, 2, 3).requires_grad_(), randn(1, 4, 2).requires_grad_()]
    assert torch.autograd.gradcheck(lambda *f: compose(f, 1), factors)
    assert compose([f.float() for f in factors], 1).dtype == torch.float32


def test_matrices_and_single_modes_become_canonical_kernels():
    spec = describe_layer(nn.Conv3d(4, 6, (2, 3, 5)))
    assert pointwise_kernel(randn(1, 6, 4), spec).shape == (1, 6, 4, 1, 1, 1)
    kernel = randn(1, 6, 4, 3)
    assert torch.equal(axis_kernel(kernel, spec, 1)[:, :, :, 0, :, 0], kernel)
    assert axis_kernel(kernel, spec, -1).shape == (1, 6, 4, 1, 1, 3)
    assert pointwise_kernel(randn(1, 6, 4), describe_layer(nn.Linear(4, 6))).shape == (1, 6, 4)
