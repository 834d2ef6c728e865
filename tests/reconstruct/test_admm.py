"""ADMM beside a generic convex solver, and its steps beside their definitions."""

import pytest
import torch
from torch import Tensor

from tensorpress.errors import InvalidArgumentError
from tensorpress.reconstruct.admm import LowRankSparse, low_rank_sparse, split_ranks
from tensorpress.reconstruct.regression import Regression
from tensorpress.reconstruct.relu_fit import COUPLING, relu_retarget, relu_targets, respond


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def objective(
    w: Tensor, second: Tensor, a: Tensor, b: Tensor, weights: tuple[float, float], width: int
) -> float:
    error = w - a - b
    groups = a.unflatten(1, (-1, width)).norm(dim=(0, 2)).sum()
    nuclear = torch.linalg.svdvals(b).sum()
    return float(((error @ second) * error).sum() + weights[0] * groups + weights[1] * nuclear)


@pytest.mark.parametrize("width", [1, 2])
def test_no_generic_solver_finds_less(width: int) -> None:
    """The objective is convex: a smooth solver from many starts, on a smoothed copy, ends there."""
    w, root = random(3, 4), random(4, 12, seed=1)
    second, weights = root @ root.T / 12, (0.8, 1.1)
    found = low_rank_sparse(
        w, second, sparse_weight=weights[0], rank_weight=weights[1], width=width, iterations=5000
    )
    ours = objective(w, second, found.sparse, found.low_rank, weights, width)
    best = minimum_by_lbfgs(w, second, weights, width)
    assert ours <= best * (1 + 1e-4)
    assert ours >= best * (1 - 1e-2)  # theirs is smoothed a little, so not far above


def minimum_by_lbfgs(w: Tensor, second: Tensor, weights: tuple[float, float], width: int) -> float:
    both = torch.zeros(2, *w.shape, dtype=torch.float64).normal_().mul_(0.1).requires_grad_()
    least = float("inf")
    for smooth in (1e-2, 1e-4, 1e-6, 1e-8):
        solver = torch.optim.LBFGS(
            [both], max_iter=1000, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def loss(smooth: float = smooth, solver: torch.optim.LBFGS = solver) -> Tensor:
            solver.zero_grad()
            a, b = both
            error = w - a - b
            squares = a.unflatten(1, (-1, width)).square().sum((0, 2))
            nuclear = (torch.linalg.eigvalsh(b @ b.T).clamp_min(0) + smooth**2).sqrt().sum()
            total = ((error @ second) * error).sum() + weights[0] * (
                squares + smooth**2
            ).sqrt().sum()
            total = total + weights[1] * nuclear
            total.backward()
            return total

        solver.step(loss)
        least = min(least, objective(w, second, *both.detach(), weights, width))
    return least


def test_planted_parts_are_found() -> None:
    low = random(12, 1) @ random(1, 20, seed=1)
    sparse = torch.zeros(12, 20, dtype=torch.float64)
    sparse[:, [3, 11]] = 4 * random(12, 2, seed=2)
    found = low_rank_sparse(
        low + sparse, torch.eye(20), sparse_weight=0.6, rank_weight=1.0, iterations=3000
    )
    assert found.sparse.norm(dim=0).nonzero().flatten().tolist() == [3, 11]
    assert int(torch.linalg.matrix_rank(found.low_rank, atol=1e-3)) == 1
    assert max(found.primal[-1], found.dual[-1]) < 1e-4


def test_inputs_that_are_never_seen_are_removed() -> None:
    second = torch.eye(6).double()
    second[4:] = 0
    found = low_rank_sparse(random(5, 6), second, sparse_weight=0.01, rank_weight=1e3)
    assert found.sparse.norm(dim=0).gt(0).tolist() == [True] * 4 + [False] * 2
    assert float(found.low_rank.norm()) == 0


def test_misfits_are_told() -> None:
    with pytest.raises(InvalidArgumentError, match="must be positive, not 0"):
        low_rank_sparse(random(2, 4), torch.eye(4), sparse_weight=0, rank_weight=1)
    with pytest.raises(InvalidArgumentError, match="4 columns do not divide into groups of 3"):
        low_rank_sparse(random(2, 4), torch.eye(4), sparse_weight=1, rank_weight=1, width=3)


def test_numbers_wanted_are_met_on_a_planted_sum() -> None:
    """In a norm that is far from the plain one, and with noise."""
    sparse = torch.zeros(16, 20, 4, dtype=torch.float64)
    sparse[:, [3, 9, 15]] = 0.6 * random(16, 3, 4)
    low_rank = 0.25 * random(16, 3, seed=1) @ random(3, 80, seed=2)
    root = random(80, 90, seed=3)
    kernel = sparse.flatten(1) + low_rank + 0.01 * random(16, 80, seed=4)
    kept, found = split_ranks(kernel, root @ root.T / 90, channels=3, rank=3, width=4)
    assert kept.tolist() == [3, 9, 15]
    assert int(torch.linalg.matrix_rank(found.low_rank)) == 3
    assert found.primal[-1] < 1e-4
    assert found.dual[-1] < 1e-4


def test_split_for_numbers_it_is_the_optimum_for_some_weights() -> None:
    """Those that its gradient shows: its norm on groups of A, its norm as a matrix."""
    kernel, root = random(10, 24), random(24, 60, seed=1)
    second = root @ root.T / 60
    kept, found = split_ranks(kernel, second, channels=3, rank=2, width=2)
    gradient = 2 * (kernel - found.sparse - found.low_rank) @ second
    norms = gradient.unflatten(1, (-1, 2)).norm(dim=(0, 2))
    weights = float(norms[kept].mean()), float(torch.linalg.matrix_norm(gradient, 2))
    assert float(norms.max()) == pytest.approx(weights[0], rel=1e-3)
    again = low_rank_sparse(
        kernel, second, sparse_weight=weights[0], rank_weight=weights[1], width=2
    )
    torch.testing.assert_close(again.sparse, found.sparse, atol=1e-2, rtol=0)
    torch.testing.assert_close(again.low_rank, found.low_rank, atol=1e-2, rtol=0)


def test_of_rank_zero_the_channels_make_up_for_those_left_out() -> None:
    """Channels 2 and 3 carry the same signal, so one of them is enough; weights say nothing."""
    root = random(6, 60)
    root[3] = root[2] + 0.01 * random(60, seed=1)
    root[[0, 5]] *= 0.1
    kernel = torch.ones(4, 6, dtype=torch.float64) + 0.1 * random(4, 6, seed=2)
    kept, found = split_ranks(kernel, root @ root.T / 60, channels=3, rank=0)
    assert float(found.low_rank.norm()) == 0
    assert kept.tolist() in ([1, 2, 4], [1, 3, 4])


def test_through_a_relu_the_objective_behind_it_is_less() -> None:
    x = (random(2000, 12) @ random(12, 12, seed=1)).unsqueeze(1)
    y = torch.einsum("rgn,gon->rgo", x, random(1, 10, 12, seed=2)) - 2
    regression = Regression(x)
    best = regression.kernel(y, torch.zeros(1, 10, 12).double())
    retarget, second = relu_retarget(x, y, regression), regression.second[0]

    def total(split: LowRankSparse) -> float:
        kernel, targets = (split.sparse + split.low_rank)[None], y
        for _ in range(50):  # to the bias that is best behind the ReLU
            targets = relu_targets(y, respond(x, kernel, regression.bias(targets, kernel)), 1.0)
        found = respond(x, kernel, regression.bias(targets, kernel))
        behind = float((found.clamp_min(0) - y.clamp_min(0)).square().sum()) / len(x)
        norms = torch.linalg.vector_norm(split.sparse, dim=0).sum()
        return behind + 4 * float(norms) + 8 * float(torch.linalg.svdvals(split.low_rank).sum())

    linear = low_rank_sparse(best[0], second, sparse_weight=4.0, rank_weight=8.0)
    through = low_rank_sparse(
        best[0],
        second * COUPLING,
        sparse_weight=4.0,
        rank_weight=8.0,
        start=linear,
        retarget=lambda kernel: retarget(kernel[None])[0],
    )
    assert total(through) < 0.95 * total(linear)
