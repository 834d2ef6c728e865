"""The equations of ADA-Tucker (Zhong et al. 2019), with its Kronecker products written out."""

from functools import reduce

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tensorpress import LayerPlan, Plan, press
from tensorpress.decompose import tucker_to_tensor
from tensorpress.schemes.layer_spec import weight_spec
from tensorpress.schemes.parametrization import stored_factors
from tensorpress.schemes.tucker_weight import TuckerWeight

tl = pytest.importorskip("tensorly")

# The round of mode products goes from the first mode to the last on one of these, back on the other
SIZES = [((2, 3, 7), (2, 2, 3)), ((7, 3, 2), (3, 2, 2)), ((4, 3, 2, 3), (3, 3, 2, 2))]


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def kolda_unfold(tensor, mode):
    """Unfold as the paper does (Kolda & Bader): of the other modes, the first runs fastest."""
    others = [i for i in reversed(range(tensor.ndim)) if i != mode]
    return tensor.permute(mode, *others).reshape(tensor.shape[mode], -1)


def kolda_fold(matrix, mode, shape):
    others = [i for i in reversed(range(len(shape))) if i != mode]
    order = [mode, *others]
    folded = matrix.reshape([shape[i] for i in order])
    return folded.permute([order.index(i) for i in range(len(shape))])


def kronecker(factors, mode):
    """M_d ⊗ … ⊗ M_{i+1} ⊗ M_{i−1} ⊗ … ⊗ M_1."""
    return reduce(torch.kron, [m for i, m in reversed(list(enumerate(factors))) if i != mode])


@pytest.fixture(params=SIZES, ids=str)
def factorized(request):
    """A core, its matrices, and dL/dW̃ of some loss."""
    shape, ranks = request.param
    factors = [draw(n, k, seed=i) for i, (n, k) in enumerate(zip(shape, ranks, strict=True))]
    return draw(*ranks, seed=9), factors, draw(*shape, seed=10)


def backward(core, factors, upstream):
    """Gradients by autograd, through the parametrization of a weight of the same shape."""
    leaves = [tensor.clone().requires_grad_() for tensor in (core, *factors)]
    tucker = TuckerWeight(upstream.shape, upstream.shape, core.shape)
    (tucker(*leaves) * upstream).sum().backward()
    return [leaf.grad for leaf in leaves]


def test_equation_2(factorized):
    core, factors, _ = factorized
    rebuilt = tucker_to_tensor(core, factors)
    for i in range(core.ndim):
        expected = factors[i] @ kolda_unfold(core, i) @ kronecker(factors, i).mT
        torch.testing.assert_close(kolda_unfold(rebuilt, i), expected)


def test_equation_3(factorized):
    core, factors, upstream = factorized
    _, *gradients = backward(core, factors, upstream)
    for i, gradient in enumerate(gradients):
        expected = kolda_unfold(upstream, i) @ kronecker(factors, i) @ kolda_unfold(core, i).mT
        torch.testing.assert_close(gradient, expected)


def test_equations_4_and_5(factorized):
    core, factors, upstream = factorized
    gradient, *_ = backward(core, factors, upstream)
    for i in range(core.ndim):
        unfolded = factors[i].mT @ kolda_unfold(upstream, i) @ kronecker(factors, i)
        torch.testing.assert_close(gradient, kolda_fold(unfolded, i, core.shape))


def test_equation_7_is_equation_6_with_a_superdiagonal_core():
    shape, rank = (4, 3, 5), 3
    weights, factors = draw(rank), [draw(n, rank, seed=i) for i, n in enumerate(shape)]
    superdiagonal = torch.zeros(rank, rank, rank, dtype=torch.float64)
    superdiagonal[range(rank), range(rank), range(rank)] = weights
    cp = TuckerWeight(shape, shape, (rank,) * 3, diagonal=True)(weights, *factors)
    tucker = TuckerWeight(shape, shape, (rank,) * 3)(superdiagonal, *factors)
    terms = torch.einsum("r,ar,br,cr->abc", weights, *factors)
    torch.testing.assert_close(cp, terms)
    torch.testing.assert_close(tucker, terms)


def test_the_weights_own_axes_give_plain_tucker():
    shape, ranks = (6, 5, 3, 3), (3, 2, 3, 2)
    core = draw(*ranks)
    factors = [draw(n, k, seed=i) for i, (n, k) in enumerate(zip(shape, ranks, strict=True))]
    expected = tl.tucker_to_tensor((core.numpy(), [factor.numpy() for factor in factors]))
    weight = TuckerWeight(shape, shape, ranks)(core, *factors)
    torch.testing.assert_close(weight, torch.from_numpy(expected))


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("shape", "modes"), [((4, 3, 2), (4, 3, 2)), ((2, 12), (4, 2, 3))])
def test_gradients_match_finite_differences(shape, modes, diagonal):
    ranks = (2, 2, 2)
    core = draw(2) if diagonal else draw(*ranks)
    factors = [draw(n, 2, seed=i) for i, n in enumerate(modes)]
    tucker = TuckerWeight(shape, modes, ranks, diagonal=diagonal)
    assert torch.autograd.gradcheck(tucker, [t.requires_grad_() for t in (core, *factors)])


def test_equation_9():
    """The gradient of a shared core is the sum of those that cores of the layers' own would get."""
    net = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
    layers = [("0", (6, 12), (6, 12)), ("2", (6, 6), (6, 6)), ("4", (1, 6), (6, 1))]
    shared = tuple(
        LayerPlan(name, "scada_tucker", weight_spec(shape), (3, 3), {"modes": modes})
        for name, shape, modes in layers
    )
    net = press(net.double(), Plan("scada_tucker", shared), init="glorot")
    x = draw(5, 12)
    net(x).square().sum().backward()
    total = stored_factors(net[0]).original0.grad

    own = []
    for name, _, _ in layers:
        held = stored_factors(net.get_submodule(name))
        core = nn.Parameter(held.original0.detach().clone())
        held.original0 = core
        own.append(core)
    net(x).square().sum().backward()
    torch.testing.assert_close(total, sum(core.grad for core in own))


def test_a_cached_weight_gives_the_same_gradient():
    layer = nn.Linear(6, 4).double()
    TuckerWeight((4, 6), (4, 6), (2, 2)).attach(layer)
    x = draw(3, 6)
    layer(x).sum().backward()
    plain = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    with parametrize.cached():
        layer(x).sum().backward()
    for parameter, expected in zip(layer.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, expected)
