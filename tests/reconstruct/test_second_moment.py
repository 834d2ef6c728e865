"""Second moments that are never formed, against the matrices that they stand for."""

import pytest
import torch

from tensorpress.reconstruct.alternating_fit import fit_kernels
from tensorpress.reconstruct.kernel_model import Composition
from tensorpress.reconstruct.second_moment import (
    BlockMoment,
    RowMoment,
    SecondMoment,
    mean_energy,
)


def by_rows() -> tuple[SecondMoment, torch.Tensor]:
    moment = RowMoment(torch.randn(2, 10, 27).double(), torch.tensor([0.5, 2.0]).double())
    return moment, moment.to_matrix()


def by_blocks() -> tuple[SecondMoment, torch.Tensor]:
    roots = [torch.randn(2, n, n).double() for n in (10, 17)]
    blocks = [root @ root.mT for root in roots]
    matrices = [torch.block_diag(*(block[group] for block in blocks)) for group in range(2)]
    return BlockMoment(blocks), torch.stack(matrices)


@pytest.mark.parametrize("make", [by_rows, by_blocks])
def test_products_and_energies_are_those_of_the_matrix(make: type) -> None:
    torch.manual_seed(0)
    moment, matrix = make()
    kernel = torch.randn(2, 5, 27).double()
    torch.testing.assert_close(kernel @ moment, kernel @ matrix)
    torch.testing.assert_close(mean_energy(moment), mean_energy(matrix))
    assert moment.shape == matrix.shape


@pytest.mark.parametrize("make", [by_rows, by_blocks])
@pytest.mark.parametrize(
    "shapes",
    [[(4, 3, 3, 3), (6, 4, 1, 1)], [(4, 3, 3, 1), (6, 4, 1, 3)]],
    ids=["known at once", "alternating"],
)
def test_fits_are_those_in_the_norm_of_the_matrix(make: type, shapes: list[tuple[int]]) -> None:
    torch.manual_seed(0)
    moment, matrix = make()
    start = [torch.randn(2, *shape).double() for shape in shapes]
    target = torch.randn(2, 6, 3, 3, 3).double()
    fits = [fit_kernels(start, target, second) for second in (moment, matrix)]
    assert fits[0].losses == pytest.approx(fits[1].losses, rel=1e-6)
    composed = [Composition(2)(fit.kernels) for fit in fits]
    torch.testing.assert_close(composed[0], composed[1], rtol=1e-5, atol=1e-5)


class Counted(RowMoment):
    """Counts how often kernels are multiplied with it."""

    products = 0

    def __rmatmul__(self, kernel: torch.Tensor) -> torch.Tensor:
        Counted.products += 1
        return super().__rmatmul__(kernel)


@pytest.mark.parametrize("most", [1, 12, 60])
def test_wide_layers_take_bounded_work(most: int) -> None:
    torch.manual_seed(0)
    outputs, rows, columns = 6, 10, 27
    work = most * 2 * 2 * outputs * rows * columns
    moment = Counted(torch.randn(2, rows, columns).double(), torch.tensor([0.5, 2.0]).double())
    start = [torch.randn(2, *shape).double() for shape in [(4, 3, 3, 1), (6, 4, 1, 3)]]
    Counted.products = 0
    fit = fit_kernels(start, torch.randn(2, outputs, 3, 3, 3).double(), moment, work=work)
    sweeps = len(fit.losses) - 1
    # Beside the iterations, a product a factor and one for the objective a sweep, and one before.
    assert Counted.products <= max(most, 2) + 3 * sweeps + 1
    assert fit.losses[-1] < 0.9 * fit.losses[0]
