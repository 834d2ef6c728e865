"""One layer pressed and back: what is given for ranks, what is kept, what is refused."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.ranks import EnergyRanks, FixedRanks, evbmf
from tensorpress.schemes.layer_scheme import LayerScheme
from tensorpress.schemes.press_layer import press_layer, unpress_layer
from tensorpress.schemes.registry import scheme
from tensorpress.schemes.scheme import Cost, Factorized
from tensorpress.schemes.stages import Stage, pointwise_kernel


def seeded(build):
    torch.manual_seed(0)
    return build()


def planted(ranks=(3, 5), noise=1e-3):
    """A convolution whose kernel has these Tucker ranks, but for some noise."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    core, out, into = randn(ranks[1], ranks[0], 3, 3), randn(40, ranks[1]), randn(30, ranks[0])
    kernel = torch.einsum("srxy,os,ir->oixy", core, out, into)
    layer = nn.Conv2d(30, 40, 3)
    layer.weight.data = kernel + noise * randn(40, 30, 3, 3)
    return layer


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ((2, 3), (2, 3)),
        ([2, 3], (2, 3)),
        (range(2, 4), (2, 3)),
        (3, (3, 3)),
        (np.int64(3), (3, 3)),
        ((np.int32(2), np.int64(3)), (2, 3)),
        (0.5, (4, 5)),
        (np.float32(0.5), (4, 5)),
        (1.0, (8, 10)),
        (1e-6, (1, 1)),
        (FixedRanks((2, 3)), (2, 3)),
    ],
    ids=repr,
)
def test_ranks_can_be_given_in_many_ways(ranks, expected):
    pressed = press_layer(nn.Conv2d(8, 10, 3), "tucker2", ranks)
    assert pressed.ranks == expected
    assert pressed[1].weight.shape[:2] == expected[::-1]
    assert all(type(rank) is int for rank in pressed.ranks)


@pytest.mark.parametrize("ranks", ["evbmf", "energy:0.999", EnergyRanks(0.999)], ids=repr)
def test_rules_find_the_planted_ranks(ranks):
    pressed = press_layer(planted(), "tucker2", ranks)
    assert pressed.ranks == (3, 5)
    assert pressed.relative_error < 0.001


@pytest.mark.parametrize(("name", "rank"), [("tucker1_in", 3), ("channel_svd", 5)])
def test_evbmf_finds_one_planted_rank(name, rank):
    assert press_layer(planted(noise=0.1), name, "evbmf").ranks == (rank,)


def test_evbmf_of_noise_keeps_one_component():
    layer = seeded(lambda: nn.Linear(60, 50))
    nn.init.normal_(layer.weight)
    values = torch.linalg.svdvals(layer.weight.detach().double())
    assert evbmf(values, 50, 60).rank == 0
    assert press_layer(layer, "channel_svd", "evbmf").ranks == (1,)


def test_energy_keeps_the_least_that_holds_it():
    layer = seeded(lambda: nn.Linear(12, 9)).double()
    kept = torch.linalg.svdvals(layer.weight.detach()).square().cumsum(0)
    needed = int((kept / kept[-1] < 0.9).sum()) + 1
    pressed = press_layer(layer, "channel_svd", "energy:0.9")
    assert pressed.ranks == (needed,)
    assert pressed.relative_error**2 <= 0.1 < 1 - float(kept[needed - 2] / kept[-1])


@dataclass(frozen=True)
class HalfOfEach:
    """A rule of a user's own."""

    needs_spectra = False

    def ranks(self, spectra, largest):
        assert spectra == ()
        return tuple(-(-most // 2) for most in largest)


def test_a_rule_of_ones_own():
    assert press_layer(nn.Conv2d(8, 5, 3), "tucker2", HalfOfEach()).ranks == (4, 3)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ((2,), r"expected 2 ranks, at most \(8, 10\), got 1: \(2,\)"),
        ((2, 3, 4), r"expected 2 ranks, at most \(8, 10\), got 3"),
        ((), "expected 2 ranks"),
        ((2, 11), r"rank 2 of \(2, 11\) must be from 1 to 10, got 11"),
        (9, r"rank 1 of \(9, 9\) must be from 1 to 8, got 9"),
        ((0, 2), r"at least 1, got \(0, 2\)"),
        (-3, "at least 1, got -3"),
        (True, "ranks must be an int, .*; got True"),
        ((2, False), r"ranks must be an int, .*; got \(2, False\)"),
        ([2.0, 3.0], "ranks must be an int, .*"),
        (None, "ranks must be an int, .*; got None"),
        ({2, 3}, "ranks must be an int, .*"),
        ("half", "unknown rank rule 'half'"),
        ("energy:", "expected a fraction"),
        ("energy:1.1", "expected a fraction"),
        (1.5, "up to 1, got 1.5"),
        (float("nan"), "up to 1, got nan"),
    ],
    ids=repr,
)
def test_ranks_that_cannot_be_are_told_what_is_expected(ranks, message):
    with pytest.raises(InvalidArgumentError, match=message):
        press_layer(nn.Conv2d(8, 10, 3), "tucker2", ranks)


def test_rules_for_matrices_are_refused_where_a_rank_is_of_none():
    with pytest.raises(InvalidArgumentError, match="needs the spectra of a matrix"):
        press_layer(nn.Conv2d(8, 10, 3), "cp", "evbmf")


def test_schemes_are_names_or_objects():
    layer = nn.Linear(6, 4)
    with pytest.raises(InvalidArgumentError, match="unknown scheme 'tuker2': did you mean 'tucker"):
        press_layer(layer, "tuker2", 1)
    with pytest.raises(InvalidArgumentError, match="a name or a Scheme, not None"):
        press_layer(layer, None, 1)
    named, given = (press_layer(layer, s, 2) for s in ("channel_svd", scheme("channel_svd")))
    assert all(map(torch.equal, named.parameters(), given.parameters()))


@dataclass(frozen=True)
class FirstChannels(LayerScheme):
    """A scheme of a user's own: only the first input channels are looked at."""

    name: str = "first_channels"
    summary: str = "for a test"

    def refusal(self, spec):
        return None if spec.groups == 1 else "it has groups"

    def largest_ranks(self, spec):
        return (spec.inputs,)

    def spectra(self, spec, kernel):
        return ()

    def stages(self, spec, ranks):
        everywhere = tuple(range(spec.order))
        return Stage(1, *ranks, spec.inputs), Stage(1, spec.outputs, *ranks, everywhere)

    def factorize(self, spec, kernel, ranks, spectra):
        (rank,) = ranks
        chosen = torch.eye(rank, spec.inputs, dtype=kernel.dtype)[None]
        left = kernel[:, :, rank:].norm() / kernel.norm()
        return Factorized([pointwise_kernel(chosen, spec), kernel[:, :, :rank]], float(left))


def test_a_scheme_of_ones_own():
    layer = seeded(lambda: nn.Conv2d(6, 5, 3, stride=2))
    own, x = FirstChannels(), torch.randn(2, 6, 9, 9)
    pressed = press_layer(layer, own, 4)
    without = x.clone()
    without[:, 4:] = 0
    torch.testing.assert_close(pressed(x), layer(without), atol=1e-5, rtol=1e-4)
    assert own.cost(layer, 4, (9, 9)) == Cost(4 * 6 + 5 * 4 * 9 + 5, 81 * 24 + 16 * 180)
    weight = own.compose(pressed)
    assert not weight[:, 4:].any()
    assert type(unpress_layer(pressed)) is nn.Conv2d
    with pytest.raises(InvalidArgumentError, match=r"first_channels cannot take .*: it has groups"):
        press_layer(nn.Conv2d(6, 4, 3, groups=2), own, 1)


def test_a_bias_that_is_no_number_is_refused():
    layer = nn.Linear(4, 3)
    layer.bias.data[1] = float("inf")
    with pytest.raises(InvalidArgumentError, match="the layer's bias has NaN or infinite"):
        press_layer(layer, "channel_svd", 1)


def test_a_frozen_weight_in_factors_is_a_frozen_parameter_again():
    layer = nn.Linear(20, 30).requires_grad_(False)
    dense = unpress_layer(press_layer(layer, "tt_weight", 2))
    assert {name for name, _ in dense.named_parameters()} == {"weight", "bias"}
    assert not list(dense.named_buffers())
    assert not dense.weight.requires_grad
