from itertools import pairwise, product
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tensorpress.decompose import (
    TTMatrix,
    cheapest_tt_order,
    largest_tt_ranks,
    tt_macs,
    tt_matrix,
    tt_matrix_spectra,
    tt_merge,
    tt_multiply,
    tt_params,
    tt_row_macs,
    tt_rows,
    tt_svd,
    tt_to_matrix,
)
from tensorpress.errors import InvalidArgumentError

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
)
MODES = (2, 3, 2), (3, 2, 4)
RANKS = (3, 4)


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def random_cores(row_modes, column_modes, ranks, dtype=torch.float64):
    ends = [1, *ranks, 1]
    return [
        draw(ends[k], m, n, ends[k + 1], seed=k, dtype=dtype)
        for k, (m, n) in enumerate(zip(row_modes, column_modes, strict=True))
    ]


def distance(tensor, other):
    return float((tensor.double() - other.double()).norm() / tensor.double().norm())


def count_macs(function, *args, **options):
    counter = FlopCounterMode(display=False)
    with counter:
        function(*args, **options)
    return counter.get_total_flops() // 2


@st.composite
def trains(draw):
    order = draw(st.integers(1, 5))
    row_modes, column_modes = (
        tuple(draw(st.lists(st.integers(1, 4), min_size=order, max_size=order))) for _ in range(2)
    )
    return row_modes, column_modes, tuple(draw(st.integers(1, 5)) for _ in range(order - 1))


def test_entries_are_products_of_slices_in_c_order():
    cores = random_cores(*MODES, RANKS)
    matrix = tt_to_matrix(cores)
    for row, i in enumerate(product(*map(range, MODES[0]))):
        for column, j in enumerate(product(*map(range, MODES[1]))):
            a, b, c = (core[:, i[k], j[k]] for k, core in enumerate(cores))
            torch.testing.assert_close(matrix[row, column], (a @ b @ c)[0, 0])


@given(trains())
@settings(max_examples=30)
def test_largest_ranks_reproduce_the_matrix(case):
    row_modes, column_modes, _ = case
    matrix = draw(prod(row_modes), prod(column_modes))
    sizes = [m * n for m, n in zip(row_modes, column_modes, strict=True)]
    result = tt_matrix(matrix, row_modes, column_modes, ranks=largest_tt_ranks(sizes))
    assert distance(matrix, result.to_tensor()) < 1e-12
    assert (result.row_modes, result.column_modes) == (row_modes, column_modes)
    assert result.shape == tuple(matrix.shape)
    assert result.ranks == largest_tt_ranks(sizes)
    assert (
        result.num_params == tt_params(sizes, result.ranks) == sum(c.numel() for c in result.cores)
    )


@pytest.mark.parametrize("tolerance", [0.9, 0.5, 0.1, 1e-4])
def test_a_tolerance_bounds_the_error_which_is_measured(tolerance):
    matrix = draw(12, 24) * 0.8 ** torch.arange(24)
    result = tt_matrix(matrix, *MODES, tolerance=tolerance)
    measured = distance(matrix, result.to_tensor())
    assert measured <= tolerance
    assert result.relative_error == pytest.approx(measured, abs=1e-12)


def test_one_pair_of_modes_is_the_matrix():
    matrix = draw(5, 7)
    result = tt_matrix(matrix, (5,), (7,), ranks=())
    assert torch.equal(result.cores[0], matrix.reshape(1, 5, 7, 1))
    assert torch.equal(result.to_tensor(), matrix)
    x = draw(3, 7)
    torch.testing.assert_close(result.multiply(x), x @ matrix.mT)


def test_row_modes_alone_are_the_train_of_a_tensor():
    tensor = draw(3, 4, 5)
    result = tt_matrix(tensor.reshape(60, 1), (3, 4, 5), (1, 1, 1), ranks=(2, 3))
    expected = tt_svd(tensor, ranks=(2, 3))
    for core, other in zip(result.cores, expected.cores, strict=True):
        assert torch.equal(core[:, :, 0], other)


def test_a_kronecker_product_has_ranks_of_one():
    factors = [draw(m, n, seed=k) for k, (m, n) in enumerate(zip(*MODES, strict=True))]
    matrix = torch.kron(torch.kron(factors[0], factors[1]), factors[2])
    assert tt_matrix(matrix, *MODES, tolerance=1e-10).ranks == (1, 1)
    spectra = tt_matrix_spectra(matrix, *MODES)
    assert [len(spectrum.values) for spectrum in spectra] == [6, 8]
    for spectrum in spectra:
        assert float(spectrum.values[1]) < 1e-7 * float(spectrum.values[0])


def test_a_zero_matrix_has_no_error():
    result = tt_matrix(torch.zeros(12, 24), *MODES, ranks=(2, 2))
    assert result.relative_error == 0
    assert float(result.to_tensor().abs().max()) == 0
    assert float(result.multiply(torch.ones(24)).abs().max()) == 0


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_device_are_those_of_the_matrix(dtype, device):
    matrix = draw(12, 24).to(device, dtype)
    result = tt_matrix(matrix, *MODES, tolerance=0)
    x = draw(5, 24, seed=1).to(device, dtype)
    tensors = [
        *result.cores,
        result.to_tensor(),
        result.multiply(x),
        result.multiply(x[0]),
        tt_rows(result.cores, torch.tensor([0, 11], device=device)),
    ]
    for tensor in tensors:
        assert tensor.dtype == dtype
        assert tensor.device.type == device
    dense = x.double() @ matrix.double().mT
    assert distance(dense, result.multiply(x)) < 20 * torch.finfo(dtype).eps
    assert distance(dense[0], result.multiply(x[0])) < 20 * torch.finfo(dtype).eps


@given(trains(), st.booleans(), st.lists(st.integers(0, 3), max_size=3))
@settings(max_examples=60)
def test_products_are_those_of_the_dense_matrix(case, from_left, leading):
    cores = random_cores(*case)
    x = draw(*leading, prod(case[1]), seed=9)
    y = tt_multiply(cores, x, from_left=from_left)
    torch.testing.assert_close(y, x @ tt_to_matrix(cores).mT)


@pytest.mark.parametrize("vectors", [1, 2, 50])
@pytest.mark.parametrize("from_left", [True, False])
def test_long_trains_multiply_as_the_dense_matrix(vectors, from_left):
    """Stacks of many narrow products and of few wide ones, both ways."""
    cores = random_cores((4, 2, 3, 5), (3, 5, 4, 4), (6, 8, 5))
    x = draw(vectors, 240)
    y = tt_multiply(cores, x, from_left=from_left)
    torch.testing.assert_close(y, x @ tt_to_matrix(cores).mT)


@given(trains(), st.integers(1, 4), st.booleans())
@settings(max_examples=40)
def test_macs_agree_with_those_that_torch_counts(case, vectors, from_left):
    row_modes, column_modes, ranks = case
    cores = random_cores(*case)
    x = draw(vectors, prod(column_modes))
    counted = count_macs(tt_multiply, cores, x, from_left=from_left)
    assert vectors * tt_macs(row_modes, column_modes, ranks, from_left) == counted


@given(trains(), st.integers(1, 4))
@settings(max_examples=40)
def test_macs_of_a_row_agree_with_those_that_torch_counts(case, rows):
    cores = random_cores(*case)
    counted = count_macs(tt_rows, cores, torch.zeros(rows, dtype=torch.long))
    assert rows * tt_row_macs(case[1], case[2]) == counted


@given(trains(), st.sampled_from([1, 3, 1000]))
@settings(max_examples=60)
def test_the_cheapest_order_is_the_cheapest(case, vectors):
    row_modes, column_modes, ranks = case
    order = cheapest_tt_order(row_modes, column_modes, ranks, vectors=vectors)
    cores = random_cores(*case)

    def macs_and_cost(groups, from_left):
        merged = tt_merge(cores, groups)
        m, n = [c.shape[1] for c in merged], [c.shape[2] for c in merged]
        ends = [1, *(c.shape[3] for c in merged)]
        macs = vectors * tt_macs(m, n, ends[1:-1], from_left) + count_macs(tt_merge, cores, groups)
        if from_left:
            states = [prod(m[:k]) * ends[k] * prod(n[k:]) for k in range(1, len(m) + 1)]
        else:
            states = [prod(n[:k]) * ends[k] * prod(m[k:]) for k in range(len(m))]
        return macs, macs + 16 * vectors * sum(states)

    macs, least = macs_and_cost(order.groups, order.from_left)
    assert order.macs == macs
    count = len(cores)
    for cuts in product([False, True], repeat=count - 1):
        places = [0, *(k for k, cut in enumerate(cuts, 1) if cut), count]
        groups = [b - a for a, b in pairwise(places)]
        if len(groups) > 1 or count == 1:
            assert least <= min(macs_and_cost(groups, side)[1] for side in (True, False))


def test_neighbours_are_merged_where_many_vectors_share_the_cost():
    modes = (8, 8, 8), (8, 8, 8)
    assert cheapest_tt_order(*modes, (16, 16), vectors=1).groups == (1, 1, 1)
    assert cheapest_tt_order(*modes, (16, 16), vectors=1000).groups == (2, 1)


@given(trains(), st.lists(st.integers(0, 3), max_size=2))
@settings(max_examples=40)
def test_multiply_takes_any_leading_shape(case, leading):
    result = TTMatrix(tuple(random_cores(*case)), 0.0)
    x = draw(*leading, result.shape[1], seed=9)
    torch.testing.assert_close(result.multiply(x), x @ result.to_tensor().mT)


@given(trains())
@settings(max_examples=20)
def test_merged_cores_are_of_the_same_matrix(case):
    cores = random_cores(*case)
    matrix = tt_to_matrix(cores)
    whole = tt_merge(cores, [len(cores)])
    torch.testing.assert_close(whole[0][0, ..., 0], matrix)
    if len(cores) > 2:
        torch.testing.assert_close(tt_to_matrix(tt_merge(cores, [len(cores) - 1, 1])), matrix)


@given(trains(), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 100))
@settings(max_examples=40)
def test_rows_are_those_of_the_dense_matrix(case, leading, seed):
    cores = random_cores(*case)
    matrix = tt_to_matrix(cores)
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(matrix.shape[0], tuple(leading), generator=generator)
    torch.testing.assert_close(tt_rows(cores, indices), matrix[indices])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_every_row_can_be_looked_up(dtype):
    cores = random_cores(*MODES, RANKS)
    torch.testing.assert_close(tt_rows(cores, torch.arange(12, dtype=dtype)), tt_to_matrix(cores))


@pytest.mark.parametrize("index", [12, 13, 23, 1000, -1])
def test_rows_out_of_range_are_refused(index):
    with pytest.raises(IndexError):
        tt_rows(random_cores(*MODES, RANKS), torch.tensor([0, index]))


def test_rows_need_integers():
    with pytest.raises(InvalidArgumentError, match=r"integers, got torch\.float32"):
        tt_rows(random_cores(*MODES, RANKS), torch.ones(2))


@pytest.mark.parametrize("from_left", [True, False])
@pytest.mark.parametrize("vectors", [1, 2])
def test_products_are_differentiable(vectors, from_left):
    cores = [core.requires_grad_() for core in random_cores(*MODES, (2, 3))]
    x = draw(vectors, 24).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, *cores: tt_multiply(cores, x, from_left=from_left), (x, *cores)
    )


def test_rows_merging_and_the_matrix_are_differentiable():
    cores = [core.requires_grad_() for core in random_cores((2, 3, 2), (2, 1, 2), (2, 3))]
    indices = torch.tensor([0, 11, 5, 5])
    for function in (
        lambda *cores: tt_rows(cores, indices),
        lambda *cores: tt_merge(cores, (1, 2)),
        lambda *cores: tt_to_matrix(cores),
    ):
        assert torch.autograd.gradcheck(function, cores)


def test_products_export_with_any_number_of_vectors():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cores = torch.nn.ParameterList(random_cores(*MODES, RANKS))

        def forward(self, x):
            return tt_multiply(list(self.cores), x, from_left=True)

    layer = Layer()
    shapes = {"x": {0: torch.export.Dim("vectors", min=2, max=4096)}}
    exported = torch.export.export(layer, (draw(7, 24),), dynamic_shapes=shapes).module()
    for vectors in (2, 100):
        x = draw(vectors, 24)
        torch.testing.assert_close(exported(x), layer(x))


@pytest.mark.parametrize(
    ("row_modes", "column_modes", "message"),
    [
        ((2, 3), (3, 2, 4), "as many row modes as column modes"),
        ((), (), "at least one"),
        ((2, 3, 3), (3, 2, 4), r"row modes \(2, 3, 3\) .* 12 rows, got a product of 18"),
        ((2, 3, 2), (3, 2, 5), r"column modes \(3, 2, 5\) .* 24 columns, got a product of 30"),
        ((-2, 3, -2), (3, 2, 4), "must be positive"),
    ],
)
def test_modes_that_do_not_fit_are_refused(row_modes, column_modes, message):
    for function in (tt_matrix_spectra, lambda *args: tt_matrix(*args, tolerance=0.1)):
        with pytest.raises(InvalidArgumentError, match=message):
            function(draw(12, 24), row_modes, column_modes)


def test_a_tensor_of_another_order_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"expected a matrix, got shape \(12, 2, 12\)"):
        tt_matrix(draw(12, 2, 12), *MODES, tolerance=0.1)


def test_ranks_out_of_range_and_bad_values_are_refused():
    matrix = draw(12, 24)
    with pytest.raises(InvalidArgumentError, match=r"TT-rank 2 .* from 1 to 8, got 9"):
        tt_matrix(matrix, *MODES, ranks=(2, 9))
    with pytest.raises(InvalidArgumentError, match="either ranks or a tolerance"):
        tt_matrix(matrix, *MODES)
    matrix[3, 4] = float("nan")
    with pytest.raises(InvalidArgumentError, match="NaN or infinite"):
        tt_matrix(matrix, *MODES, ranks=(2, 2))


@pytest.mark.parametrize("x", [torch.ones(3, 23), torch.tensor(1.0), torch.ones(24, 3)])
def test_vectors_of_another_length_are_refused(x):
    with pytest.raises(InvalidArgumentError, match=r"24 columns needs vectors"):
        tt_multiply(random_cores(*MODES, RANKS), x, from_left=True)


def test_cores_that_make_no_train_are_refused():
    first, *rest = random_cores(*MODES, RANKS)
    for cores in ([first[..., :2], *rest], [first[0]], [], rest):
        for function in (
            tt_to_matrix,
            lambda cores: tt_multiply(cores, torch.ones(24), from_left=True),
            lambda cores: tt_rows(cores, torch.tensor(0)),
        ):
            with pytest.raises(InvalidArgumentError, match="core"):
                function(cores)


@pytest.mark.parametrize("groups", [(), (1, 1), (2, 2), (3, 0), (4, -1)])
def test_groups_with_another_sum_are_refused(groups):
    with pytest.raises(InvalidArgumentError, match="add up to 3 TT-cores"):
        tt_merge(random_cores(*MODES, RANKS), groups)


def test_costs_need_one_rank_fewer_than_modes():
    with pytest.raises(InvalidArgumentError, match="one rank fewer"):
        tt_macs((2, 3), (2, 3), (2, 2), from_left=True)
    with pytest.raises(InvalidArgumentError, match="one rank fewer"):
        cheapest_tt_order((2, 3), (2, 3, 4), (2,), vectors=1)


def test_the_published_fully_connected_layer():
    """The first layer of VGG, 25088×4096 (Novikov et al. 2015, table 2)."""
    cores = random_cores((4,) * 6, (2, 7, 8, 8, 7, 4), (4,) * 5)
    layer = TTMatrix(tuple(cores), 0.0)
    assert layer.shape == (4096, 25088)
    assert layer.num_params == 2016
