"""A weight rebuilt from the tensor train of its reshape."""

from copy import deepcopy
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tensorpress as tp
from tensorpress.decompose import attainable_tt_ranks, largest_tt_ranks
from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.parametrization import factorized_weight, stored_factors
from tensorpress.schemes.press_layer import press_layer, unpress_layer
from tensorpress.schemes.tt_weight import TTWeight, TTWeightScheme


def conv(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Conv2d(8, 16, 3, padding=1).to(dtype)


@pytest.fixture
def pressed():
    return press_layer(conv(), "tt_weight", 3)


@settings(max_examples=30)
@given(data=st.data())
def test_full_ranks_rebuild_the_weight(data):
    order = data.draw(st.integers(1, 3))
    rows, columns = (data.draw(st.tuples(*[st.integers(1, 4)] * order)) for _ in range(2))
    kernel = data.draw(st.sampled_from([(), (1,), (3,), (1, 1), (3, 2), (1, 2, 2)]))
    weight = torch.randn(prod(rows), prod(columns), *kernel, dtype=torch.float64)
    space = (prod(kernel),) if prod(kernel) > 1 else ()
    modes = (*space, *(m * n for m, n in zip(rows, columns, strict=True)))
    tt = TTWeight(weight.shape, rows, columns, largest_tt_ranks(modes))
    assert tt.modes == modes
    cores = tt.right_inverse(weight)
    assert sum(core.numel() for core in cores) == tt.num_params
    torch.testing.assert_close(tt(*cores), weight, atol=1e-9, rtol=1e-9)


def test_entries_are_products_of_the_cores_slices():
    """Garipov et al., eq. 6: K[x, y, c, s] = G₀[x, y] G₁[c₁, s₁] G₂[c₂, s₂]."""
    tt = TTWeight((6, 8, 3, 2), (2, 3), (4, 2), (3, 2))
    cores = [torch.randn(*s) for s in ((1, 6, 3), (3, 8, 2), (2, 6, 1))]
    weight = tt(*cores)
    for (row, column), (i, j) in {(5, 7): ((1, 2), (3, 1)), (3, 2): ((1, 0), (1, 0))}.items():
        for x, y in ((0, 1), (2, 0)):
            entry = cores[0][:, 2 * x + y]
            for core, m, n, columns in zip(cores[1:], i, j, (4, 2), strict=True):
                entry = entry @ core[:, m * columns + n]
            torch.testing.assert_close(weight[row, column, x, y], entry[0, 0])


def test_the_train_is_the_best_to_one_cut():
    """Of two modes, the TT-SVD is the SVD of the unfolding."""
    layer = nn.Linear(12, 10).double()
    tt = TTWeight((10, 12), (5, 2), (3, 4), (4,))
    values = torch.linalg.svdvals(tt.reshape(layer.weight.detach()))
    tt.attach(layer)
    expected = values[4:].norm() / values.norm()
    assert tt.relative_error == pytest.approx(float(expected), rel=1e-9)


def test_the_layer_is_what_it_was_but_for_its_weight(pressed):
    assert isinstance(pressed, nn.Conv2d)
    assert pressed.weight.shape == (16, 8, 3, 3)
    assert set(dict(pressed.named_parameters())) == {
        "bias",
        *(f"parametrizations.weight.original{k}" for k in range(3)),
    }
    assert "TT-ranks (3, 3)" in repr(pressed)


def test_cores_get_one_norm(pressed):
    norms = [float(core.detach().norm()) for core in stored_factors(pressed).parameters()]
    assert norms == pytest.approx([norms[0]] * 3)


def test_unpressing_a_copy_leaves_the_other_intact(pressed):
    copy = deepcopy(pressed)
    dense = unpress_layer(copy)
    for left in (pressed, copy):
        assert isinstance(factorized_weight(left), TTWeight)
        assert torch.equal(left.weight, dense.weight)
        left(torch.randn(1, 8, 4, 4, dtype=torch.float64)).sum().backward()
        assert all(p.grad is not None for p in left.parameters())
    assert type(dense) is nn.Conv2d
    assert isinstance(dense.weight, nn.Parameter)
    assert set(dense.state_dict()) == {"weight", "bias"}


def test_materialize_leaves_a_dense_layer(pressed):
    net = nn.Sequential(pressed, nn.ReLU())
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    dense = tp.materialize(net)
    torch.testing.assert_close(dense(x), net(x))
    assert type(dense[0]) is nn.Conv2d
    assert factorized_weight(net[0]) is not None
    assert tp.materialize(pressed, inplace=True) is pressed
    assert type(pressed) is nn.Conv2d


def test_assigning_the_weight_decomposes_it(pressed):
    other = conv()
    nn.init.normal_(other.weight)
    expected = press_layer(other, "tt_weight", 3)
    pressed.weight = other.weight.detach()
    torch.testing.assert_close(pressed.weight, expected.weight)
    found, known = factorized_weight(pressed), factorized_weight(expected)
    assert found.relative_error == pytest.approx(known.relative_error)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(8, 16, 3, 3), r"needs a weight of shape \(16, 8, 3, 3\), not \(8, 16, 3, 3\)"),
        (torch.zeros(16, 8), "needs a weight of shape"),
        (torch.full((16, 8, 3, 3), float("nan")), "NaN or infinite"),
    ],
    ids=["turned", "too few", "nan"],
)
def test_a_weight_that_does_not_fit_cannot_be_assigned(pressed, weight, message):
    before = pressed.weight.detach().clone()
    with pytest.raises(InvalidArgumentError, match=message):
        pressed.weight = weight
    assert torch.equal(pressed.weight, before)


@pytest.mark.parametrize(
    ("rows", "columns", "ranks", "message"),
    [
        ((4, 5), (2, 4), (3, 3), "modes 4×5 and 2×4 do not fit a weight 16×8×3×3"),
        ((4, 4), (2, 2, 2), (3, 3, 3), "modes 4×4 and 2×2×2 do not fit"),
        ((-4, -4), (2, 4), (3, 3), "do not fit"),
        ((4, 4), (2, 4), (3,), "expected 2 ranks"),
        ((4, 4), (2, 4), (3, 3, 3), "expected 2 ranks"),
        ((4, 4), (2, 4), (10, 3), r"rank 1 of \(10, 3\) must be from 1 to 9"),
        ((4, 4), (2, 4), (0, 3), "rank 1 of"),
    ],
)
def test_modes_and_ranks_that_do_not_fit_are_refused(rows, columns, ranks, message):
    with pytest.raises(InvalidArgumentError, match=message):
        TTWeight((16, 8, 3, 3), rows, columns, ranks)


def test_modes_can_be_given():
    layer = conv()
    pressed = press_layer(layer, TTWeightScheme("x", "", (2, 8), (4, 2)), 1.0)
    assert factorized_weight(pressed).modes == (9, 8, 16)
    torch.testing.assert_close(pressed.weight, layer.weight, atol=1e-10, rtol=1e-10)
    for rows, columns in (((2, 4), (4, 2)), ((2, 8), ()), ((), (4, 2))):
        with pytest.raises(InvalidArgumentError, match="x cannot take this Conv2d: modes"):
            press_layer(layer, TTWeightScheme("x", "", rows, columns), 1)


def test_a_rank_its_neighbours_cannot_use_is_lowered():
    layer = conv()
    scheme = tp.scheme("tt_weight")
    modes = factorized_weight(press_layer(layer, scheme, 1)).modes
    largest = largest_tt_ranks(modes)
    ranks = (1, largest[1])
    expected = attainable_tt_ranks(modes, ranks)
    assert expected != ranks
    pressed = press_layer(layer, scheme, ranks)
    assert factorized_weight(pressed).ranks == expected
    assert scheme.cost(layer, ranks, (5, 5)).params == sum(p.numel() for p in pressed.parameters())


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"padding_idx": 0}, "padding vector"), ({"sparse": True}, "sparse gradients")],
)
def test_embeddings_it_would_change_are_refused(options, reason):
    with pytest.raises(InvalidArgumentError, match=reason):
        press_layer(nn.Embedding(9, 6, **options), "tt_weight", 2)


def test_gradients_are_those_of_finite_differences():
    tt = TTWeight((4, 6, 2), (2, 2), (3, 2), (2, 3))
    cores = [
        torch.randn(*s, dtype=torch.float64, requires_grad=True)
        for s in ((1, 2, 2), (2, 6, 3), (3, 4, 1))
    ]
    assert torch.autograd.gradcheck(tt, cores)
