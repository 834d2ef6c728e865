"""A Linear and an Embedding as tensor trains that are contracted, never built."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tensorpress.decompose.tt_matvec import tt_macs
from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.press_layer import press_layer, unpress_layer
from tensorpress.schemes.registry import scheme
from tensorpress.schemes.tt_layers import TTEmbedding, TTLinear
from tensorpress.schemes.tt_matrix import TrainOfMatrix, covering_modes


def filled(kind, layer, row_modes, column_modes, ranks):
    """A tensor-train layer in float64 with random cores."""
    like = torch.empty(0, dtype=torch.float64)
    made = kind(describe_layer(layer), row_modes, column_modes, ranks, scheme="x", like=like)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(generator=generator)
    return made


@st.composite
def trains(draw):
    """Row modes, column modes and ranks of up to four cores."""
    order = draw(st.integers(1, 4))
    rows, columns = (draw(st.tuples(*[st.integers(1, 4)] * order)) for _ in range(2))
    return rows, columns, draw(st.tuples(*[st.integers(1, 3)] * (order - 1)))


@settings(max_examples=40)
@given(trains(), st.sampled_from([(), (3,), (0,), (2, 0), (2, 3), (1, 2, 2)]), st.booleans())
def test_the_product_is_that_with_the_dense_weight(train, leading, bias):
    rows, columns, ranks = train
    linear = nn.Linear(prod(columns), prod(rows), bias=bias)
    layer = filled(TTLinear, linear, rows, columns, ranks)
    x = torch.randn(*leading, prod(columns), dtype=torch.float64)
    expected = functional.linear(x, layer.dense_weight(), layer.bias)
    for from_left in (True, False):
        layer.from_left = from_left
        torch.testing.assert_close(layer(x), expected, atol=1e-9, rtol=1e-9)


@settings(max_examples=30)
@given(trains(), st.sampled_from([(), (3,), (0,), (2, 3)]), st.integers(0, 2), st.data())
def test_a_look_up_is_that_in_the_dense_table(train, leading, filling, data):
    rows, columns, ranks = train
    count = max(1, prod(rows) - filling)
    pad = data.draw(st.none() | st.integers(0, count - 1))
    table = nn.Embedding(count, prod(columns), padding_idx=pad)
    layer = filled(TTEmbedding, table, rows, columns, ranks)
    for dtype in (torch.int64, torch.int32):
        indices = torch.randint(count, leading, dtype=dtype)
        torch.testing.assert_close(
            layer(indices), functional.embedding(indices, layer.dense_weight())
        )
    assert layer.dense_weight().shape == (count, prod(columns))


def test_the_cheaper_end_comes_first():
    modes = (4, 4, 4), (2, 8, 8)
    layer = filled(TTLinear, nn.Linear(128, 64), *modes, (3, 3))
    costs = [tt_macs(*modes, (3, 3), from_left=side) for side in (True, False)]
    assert costs[0] != costs[1]
    assert layer.from_left == (costs[0] < costs[1])
    mirrored = filled(TTLinear, nn.Linear(128, 64), *(m[::-1] for m in modes), (3, 3))
    assert mirrored.from_left != layer.from_left
    cost = TrainOfMatrix("x", "", *modes).cost(nn.Linear(128, 64), 3, (5,))
    assert cost.macs == 5 * min(costs)


def test_gradients_of_a_linear_are_those_of_finite_differences():
    layer = filled(TTLinear, nn.Linear(12, 6), (2, 3), (4, 3), (2,))
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    for from_left in (True, False):
        layer.from_left = from_left
        assert torch.autograd.gradcheck(
            lambda x, *values: torch.func.functional_call(
                layer, dict(zip(dict(layer.named_parameters()), values, strict=True)), (x,)
            ),
            (x, *layer.parameters()),
        )


def test_gradients_of_an_embedding_are_those_of_finite_differences():
    layer = filled(TTEmbedding, nn.Embedding(11, 6, padding_idx=3), (4, 3), (2, 3), (2,))
    indices = torch.tensor([[0, 3, 10], [10, 10, 5]])
    names = list(dict(layer.named_parameters()))
    assert torch.autograd.gradcheck(
        lambda *values: torch.func.functional_call(
            layer, dict(zip(names, values, strict=True)), (indices,)
        ),
        tuple(layer.parameters()),
    )


def test_the_padding_vector_is_zero_and_teaches_nothing():
    table = nn.Embedding(10, 6, padding_idx=-2)
    layer = press_layer(table, "tensor_train", 1.0)
    assert not layer(torch.tensor(8)).any()
    assert not layer.dense_weight()[8].any()
    layer(torch.tensor([8, 8])).sum().backward()
    assert not any(core.grad.any() for core in layer.cores)
    layer(torch.tensor([8, 7])).sum().backward()
    assert all(core.grad.any() for core in layer.cores)
    for core in layer.cores:
        core.data.add_(1)
    assert not layer(torch.tensor(8)).any()
    assert unpress_layer(layer).padding_idx == 8


def test_a_padding_vector_that_is_not_zero_is_refused():
    table = nn.Embedding(10, 6, padding_idx=2)
    nn.init.ones_(table.weight)
    with pytest.raises(InvalidArgumentError, match="padding_idx is not zero"):
        press_layer(table, "tensor_train", 2)


@pytest.mark.parametrize("index", [50, 55, 56, 1000, -1])
@pytest.mark.parametrize("pad", [None, 0])
def test_an_index_out_of_range_is_an_error_where_it_is_one_of_the_table(index, pad):
    """Also of the rows 50 to 55, which only fill the modes 8×7."""
    table = nn.Embedding(50, 8, padding_idx=pad)
    layer = press_layer(table, "tensor_train", 3)
    assert prod(layer.row_modes) == 56
    for module in (table, layer):
        with pytest.raises(IndexError):
            module(torch.tensor([3, index]))
    assert layer(torch.tensor([0, 49])).shape == (2, 8)


def test_input_that_does_not_fit_is_refused():
    linear, table = (
        press_layer(m, "tensor_train", 2) for m in (nn.Linear(8, 6), nn.Embedding(9, 6))
    )
    for shape in ((3, 7), (3, 16), ()):
        with pytest.raises(InvalidArgumentError, match="8 columns needs vectors"):
            linear(torch.ones(shape))
    with pytest.raises(InvalidArgumentError, match=r"must be integers, got torch\.float32"):
        table(torch.ones(3))


def test_gradients_scaled_by_frequency_would_be_lost():
    table = nn.Embedding(20, 8, scale_grad_by_freq=True)
    with pytest.raises(InvalidArgumentError, match="scale_grad_by_freq"):
        press_layer(table, "tensor_train", 2)


@pytest.mark.parametrize(
    ("layer", "modes"),
    [
        (nn.Linear(64, 30), ((6, 5), (8, 8))),
        (nn.Linear(7, 11), ((11, 1), (1, 7))),
        (nn.Linear(1, 6), ((3, 2), (1, 1))),
        (nn.Linear(784, 1000), ((10, 10, 10), (7, 8, 14))),
        (nn.Embedding(11, 7), ((4, 3), (1, 7))),
    ],
    ids=str,
)
def test_default_modes_cover_the_weight(layer, modes):
    pressed = press_layer(layer, "tensor_train", 1.0)
    assert (pressed.row_modes, pressed.column_modes) == modes
    torch.testing.assert_close(pressed.dense_weight(), layer.weight.detach(), atol=1e-5, rtol=1e-4)


@given(st.integers(1, 100_000), st.integers(1, 6))
def test_covering_modes_cover_with_little_waste(size, order):
    modes = covering_modes(size, order)
    assert len(modes) == order
    assert prod(modes) >= size
    assert max(modes) == min(m for m in range(1, size + 1) if m**order >= size)
    assert prod(modes[:-1]) * (modes[-1] - 1) < size


def test_a_large_table_has_its_cost_without_being_held():
    """The vocabulary of GPT-2, 50257 = 29·1733, in five modes."""
    table = nn.Embedding(50257, 768, device="meta")
    form = scheme("tensor_train")
    rows, columns = TrainOfMatrix("x", "").modes(describe_layer(table))
    assert prod(columns) == 768
    assert 50257 <= prod(rows) < 1.1 * 50257
    ranks = form.choose_ranks(table, 16)
    ends = zip((1, *ranks), (*ranks, 1), rows, columns, strict=True)
    params = sum(before * m * n * after for before, after, m, n in ends)
    assert form.cost(table, 16).params == params < 50257 * 768 / 1000
    pressed = form.skeleton(describe_layer(table), ranks, like=table.weight)
    assert sum(p.numel() for p in pressed.parameters()) == params


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ((2, 3), (2, 4)),  # swapped
        ((2, 4), (2, 3, 1)),
        ((2, 4), ()),
        ((), (2, 3)),
        ((-2, -4), (-2, -3)),
        ((4, 4), (2, 3)),  # only an Embedding's may be more
    ],
)
def test_modes_that_do_not_fit_are_refused(rows, columns):
    with pytest.raises(InvalidArgumentError, match=r"x cannot take this Linear: .*modes \(.*8"):
        press_layer(nn.Linear(6, 8), TrainOfMatrix("x", "", rows, columns), 1)


def test_given_modes_are_taken():
    layer = nn.Linear(12, 30).double()
    form = TrainOfMatrix("x", "", (5, 6), (4, 3))
    pressed = press_layer(layer, form, 1.0)
    assert [tuple(core.shape) for core in pressed.cores] == [(1, 5, 4, 18), (18, 6, 3, 1)]
    x = torch.randn(2, 12, dtype=torch.float64)
    torch.testing.assert_close(pressed(x), layer(x), atol=1e-10, rtol=1e-10)
    assert form.compose(pressed).shape == (30, 12)
    with pytest.raises(InvalidArgumentError, match="is not pressed by tensor_train"):
        scheme("tensor_train").compose(pressed)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ],
)
def test_layers_run_on_their_device(device):
    linear = press_layer(nn.Linear(24, 18).to(device), "tensor_train", 1.0)
    table = press_layer(nn.Embedding(50, 8, padding_idx=1).to(device), "tensor_train", 4)
    x = torch.randn(3, 24, device=device)
    torch.testing.assert_close(
        linear(x), functional.linear(x, linear.dense_weight(), linear.bias), atol=1e-4, rtol=1e-4
    )
    indices = torch.tensor([1, 49], device=device)
    torch.testing.assert_close(table(indices), table.dense_weight()[indices], atol=1e-5, rtol=1e-4)
