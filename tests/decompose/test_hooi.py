from math import prod

import pytest
import tensorly as tl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import tucker

from tensorpress.decompose import hooi, tucker_params, tucker_to_tensor
from tensorpress.errors import InvalidArgumentError


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def structured(*shape, decay=0.6, seed=0):
    """A tensor whose unfoldings have geometrically decaying spectra, as trained weights do."""
    core = draw(*shape, seed=seed)
    for mode, n in enumerate(shape):
        scales = decay ** torch.arange(n, dtype=core.dtype)
        core = core * scales.reshape([-1 if i == mode else 1 for i in range(len(shape))])
    bases = [torch.linalg.qr(draw(n, n, seed=seed + 1 + i)).Q for i, n in enumerate(shape)]
    return tucker_to_tensor(core, bases)


def measured(tensor, found):
    tensor = tensor.double()
    return float((tensor - found.to_tensor().double()).norm() / tensor.norm())


@st.composite
def shape_and_ranks(draw):
    shape = draw(st.lists(st.integers(1, 7), min_size=2, max_size=4))
    return shape, [draw(st.integers(1, n)) for n in shape]


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4))
@settings(max_examples=25)
def test_full_ranks_reproduce_the_tensor(shape):
    tensor = draw(*shape)
    assert measured(tensor, hooi(tensor, shape)) < 1e-9


@given(shape_and_ranks())
@settings(max_examples=25)
def test_error_is_the_energy_outside_the_core(case):
    shape, ranks = case
    tensor = draw(*shape)
    found = hooi(tensor, ranks)
    energy = max(0.0, 1 - float(found.core.norm() ** 2 / tensor.norm() ** 2))
    assert found.relative_error == pytest.approx(energy**0.5, abs=1e-7)
    assert found.relative_error == pytest.approx(measured(tensor, found), abs=1e-7)


@given(shape_and_ranks())
@settings(max_examples=25)
def test_matrices_have_orthonormal_columns(case):
    shape, ranks = case
    for factor, n, k in zip(hooi(draw(*shape), ranks).factors, shape, ranks, strict=True):
        assert factor.shape == (n, k)
        torch.testing.assert_close(factor.mT @ factor, torch.eye(k, dtype=factor.dtype))


def test_error_never_grows_with_a_rank():
    tensor = structured(8, 7, 6)
    errors = [hooi(tensor, (k, min(k, 7), min(k, 6))).relative_error for k in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    assert hooi(tensor, (4, 3, 3)).relative_error <= hooi(tensor, (3, 3, 3)).relative_error + 1e-9


def test_error_never_grows_with_sweeps():
    tensor = draw(9, 8, 7)
    errors = [hooi(tensor, (3, 3, 3), max_iter=n, tol=0).relative_error for n in range(8)]
    assert errors == sorted(errors, reverse=True)
    assert hooi(tensor, (3, 3, 3), max_iter=0).iterations == 0


@pytest.mark.parametrize(
    ("tensor", "ranks"),
    [
        (structured(10, 9, 8), (4, 3, 3)),
        (structured(6, 5, 5, 4), (3, 2, 2, 2)),
        (structured(20, 12), (5, 5)),
        (structured(30, 4, 3), (4, 2, 2)),
        *((draw(8, 9, 10, seed=seed), (4, 4, 4)) for seed in range(4)),
        *((draw(6, 5, 4, 5, seed=seed), (3, 3, 3, 3)) for seed in range(4)),
    ],
)
def test_no_worse_than_tensorly(tensor, ranks):
    ours = hooi(tensor, ranks, max_iter=500)
    theirs = tucker(tensor.numpy(), ranks, n_iter_max=500, tol=1e-12)
    error = tl.norm(tensor.numpy() - tl.tucker_to_tensor(theirs)) / tl.norm(tensor.numpy())
    assert ours.relative_error <= error * (1 + 1e-4)


def test_a_matrix_is_truncated_as_by_its_svd():
    matrix = draw(9, 6)
    tail = torch.linalg.svdvals(matrix)[3:]
    found = hooi(matrix, (3, 3))
    assert found.relative_error == pytest.approx(float(tail.norm() / matrix.norm()), rel=1e-6)


@pytest.mark.parametrize("shape", [(12, 11, 10), (40, 3, 4), (7, 6, 5, 4)])
def test_exactly_low_rank_tensors_are_recovered(shape):
    ranks = [min(2, n) for n in shape]
    tensor = tucker_to_tensor(draw(*ranks), [draw(n, k) for n, k in zip(shape, ranks, strict=True)])
    found = hooi(tensor, ranks)
    assert measured(tensor, found) < 1e-7
    assert found.converged


def test_a_mode_larger_than_the_product_of_the_others():
    tensor = draw(30, 2, 3)
    found = hooi(tensor, (20, 2, 3))
    assert measured(tensor, found) < 1e-9
    torch.testing.assert_close(
        found.factors[0].mT @ found.factors[0], torch.eye(20, dtype=torch.float64)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_come_back_in_their_own(dtype):
    tensor = structured(6, 5, 4).to(dtype)
    found = hooi(tensor, (6, 5, 4))
    assert {found.core.dtype, *(f.dtype for f in found.factors)} == {dtype}
    assert measured(tensor, found) < 20 * torch.finfo(dtype).eps


def test_a_zero_tensor_has_no_error():
    found = hooi(torch.zeros(4, 3), (2, 2))
    assert found.relative_error == 0
    assert float(found.to_tensor().abs().max()) == 0


def test_gradients_do_not_flow_into_a_decomposition():
    assert not hooi(draw(4, 3).requires_grad_(), (2, 2)).core.requires_grad


@pytest.mark.parametrize("ranks", [(2,), (0, 2), (2, -1), (5, 2), (2, 2, 2)])
def test_ranks_out_of_range_are_refused(ranks):
    with pytest.raises(InvalidArgumentError, match=r"tensor of shape \(4, 3\)"):
        hooi(draw(4, 3), ranks)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    tensor = draw(4, 3)
    tensor[1, 2] = bad
    with pytest.raises(InvalidArgumentError, match="NaN or infinite"):
        hooi(tensor, (2, 2))


@given(shape_and_ranks())
@settings(max_examples=30)
def test_parameters_are_counted_as_stored(case):
    shape, ranks = case
    found = hooi(draw(*shape), ranks)
    stored = prod(found.core.shape) + sum(f.numel() for f in found.factors)
    assert found.num_params == tucker_params(shape, ranks) == stored
