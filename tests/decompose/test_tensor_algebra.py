import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.decompose import fold, mode_product, project, tucker_to_tensor, unfold
from tensorpress.decompose.tensor_algebra import is_cheaper_forwards
from tensorpress.errors import InvalidArgumentError

tl = pytest.importorskip("tensorly")
multi_mode_dot = pytest.importorskip("tensorly.tenalg").multi_mode_dot

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@st.composite
def shape_and_mode(draw):
    shape = draw(SHAPES)
    return shape, draw(st.integers(0, len(shape) - 1))


@st.composite
def shape_and_ranks(draw):
    shape = draw(SHAPES)
    return shape, [draw(st.integers(1, 6)) for _ in shape]


@given(shape_and_mode())
@settings(max_examples=30)
def test_unfold_and_fold_agree_with_tensorly(case):
    shape, mode = case
    tensor = draw(*shape)
    matrix = unfold(tensor, mode)
    np.testing.assert_array_equal(matrix, tl.unfold(tensor.numpy(), mode))
    np.testing.assert_array_equal(fold(matrix, mode, shape), tl.fold(matrix.numpy(), mode, shape))
    assert torch.equal(fold(matrix, mode, shape), tensor)


def test_rows_of_an_unfolding_are_slices():
    tensor = draw(2, 3, 4)
    for index in range(3):
        assert torch.equal(unfold(tensor, 1)[index], tensor[:, index].flatten())


@given(shape_and_mode(), st.integers(1, 5))
@settings(max_examples=30)
def test_mode_product_multiplies_the_unfolding(case, rows):
    shape, mode = case
    tensor, matrix = draw(*shape), draw(rows, shape[mode], seed=1)
    product = mode_product(tensor, matrix, mode)
    torch.testing.assert_close(unfold(product, mode), matrix @ unfold(tensor, mode))
    np.testing.assert_allclose(
        product, tl.tenalg.mode_dot(tensor.numpy(), matrix.numpy(), mode), atol=1e-12
    )


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_mode_product_takes_permuted_tensors(mode):
    tensor = draw(4, 3, 2).permute(2, 0, 1)
    matrix = draw(5, tensor.shape[mode], seed=1)
    expected = mode_product(tensor.contiguous(), matrix, mode)
    torch.testing.assert_close(mode_product(tensor, matrix, mode), expected)


@given(shape_and_ranks())
@settings(max_examples=30)
def test_tucker_to_tensor_is_a_mode_product_along_every_mode(case):
    shape, ranks = case
    core = draw(*ranks)
    factors = [draw(n, k, seed=i) for i, (n, k) in enumerate(zip(shape, ranks, strict=True))]
    expected = multi_mode_dot(core.numpy(), [factor.numpy() for factor in factors])
    np.testing.assert_allclose(tucker_to_tensor(core, factors), expected, atol=1e-9)


@given(shape_and_ranks())
@settings(max_examples=30)
def test_project_is_the_adjoint_of_tucker_to_tensor(case):
    shape, ranks = case
    tensor, core = draw(*shape), draw(*ranks, seed=1)
    factors = [draw(n, k, seed=i) for i, (n, k) in enumerate(zip(shape, ranks, strict=True))]
    inner = (tensor * tucker_to_tensor(core, factors)).sum()
    torch.testing.assert_close((project(tensor, factors) * core).sum(), inner)


@given(shape_and_mode())
@settings(max_examples=30)
def test_project_leaves_the_skipped_mode(case):
    shape, mode = case
    tensor, factors = draw(*shape), [draw(n, 2, seed=i) for i, n in enumerate(shape)]
    partial = project(tensor, factors, skip=mode)
    assert partial.shape[mode] == shape[mode]
    full = mode_product(partial, factors[mode].mT, mode)
    torch.testing.assert_close(full, project(tensor, factors))


def test_the_cheaper_direction_is_taken():
    assert is_cheaper_forwards([2, 3, 400], [2, 2, 2])
    assert not is_cheaper_forwards([400, 3, 2], [2, 2, 2])


def test_matrices_that_do_not_fit_the_core_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"core of shape \(2, 2\)"):
        tucker_to_tensor(draw(2, 2), [draw(3, 2), draw(4, 3)])
    with pytest.raises(InvalidArgumentError, match="one matrix"):
        tucker_to_tensor(draw(2, 2), [draw(3, 2)])
