"""What holds for every scheme and every layer it takes."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layer_configs import Case, cases
from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure import count_macs, count_params
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.parametrization import factorized_weight
from tensorpress.schemes.press_layer import press_layer, unpress_layer
from tensorpress.schemes.registry import rank_schemes, scheme

NAMES = tuple(rank_schemes())
ITERATIVE = ("cp", "cp_nls", "cp_corrected", "tucker2")
"""Schemes whose fit ends by a tolerance, which a stack meets together."""

TRAINS = ("tensor_train", "tt_conv", "tt_weight")
"""Schemes by TT-SVD, which is the best fit up to a constant factor only."""

WITHOUT_GROUPS = ("tt_conv", "tt_weight", "pivoted_svd")
"""Schemes that take no layer with groups, or all groups together."""

SLOW = {"cp": 4, "cp_nls": 12, "cp_corrected": 16}
"""How many times fewer examples a scheme gets."""

every_scheme = pytest.mark.parametrize("name", NAMES)


def holds_for_every_scheme(
    examples: int, names: Sequence[str] = NAMES
) -> Callable[[Callable[[str, st.DataObject], None]], Callable[[str], None]]:
    """Make a property of a scheme's name and drawn data a test of every scheme."""

    def decorate(holds: Callable[[str, st.DataObject], None]) -> Callable[[str], None]:
        @pytest.mark.parametrize("name", names)
        def test(name: str) -> None:
            @settings(max_examples=-(-examples // SLOW.get(name, 1)))
            @given(data=st.data())
            def check(data: st.DataObject) -> None:
                holds(name, data)

            check()

        return test

    return decorate


@st.composite
def taken(draw: st.DrawFn, name: str, *, grouped: bool = False) -> Case:
    """A layer that the scheme takes."""
    kinds = [kind for kind in taken_kinds(name) if not grouped or kind.startswith("Conv")]
    case = draw(cases(draw(st.sampled_from(kinds)), grouped=grouped))
    assume(is_taken(name, case.layer))
    return case


@cache
def taken_kinds(name: str) -> list[str]:
    return sorted({type(layer).__name__ for layer in samples() if is_taken(name, layer)})


def is_taken(name: str, layer: nn.Module) -> bool:
    return scheme(name).refusal(describe_layer(layer)) is None


def draw_ranks(data: st.DataObject, name: str, layer: nn.Module) -> tuple[int, ...]:
    largest = scheme(name).largest_ranks(describe_layer(layer))
    return data.draw(st.tuples(*(st.integers(1, most) for most in largest)))


@holds_for_every_scheme(25)
def test_full_rank_reproduces_the_layer(name: str, data: st.DataObject) -> None:
    case = data.draw(taken(name))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        layer = deepcopy(case.layer).to(dtype)
        example = case.example.to(dtype) if case.example.is_floating_point() else case.example
        expected = layer(example)
        found = press_layer(layer, name, 1.0)(example)
        assert found.shape == expected.shape
        assert found.dtype == dtype
        assert (found - expected).norm() <= tolerance * expected.norm().clamp_min(1e-6)


@holds_for_every_scheme(25)
def test_shape_cost_and_error_are_as_predicted(name: str, data: st.DataObject) -> None:
    case = data.draw(taken(name))
    ranks = draw_ranks(data, name, case.layer)
    pressed = press_layer(case.layer, name, ranks)
    assert pressed(case.example).shape == case.layer(case.example).shape
    cost = scheme(name).cost(case.layer, ranks, case.sizes)
    assert cost.params == count_params(pressed)
    assert cost.macs == count_macs(pressed, [case.example])
    weight = case.layer.weight.detach()
    error = float((scheme(name).compose(pressed) - weight).norm() / weight.norm())
    predicted = error_of(pressed)
    assert error == pytest.approx(predicted, abs=2e-7)


def error_of(pressed: nn.Module) -> float:
    held = factorized_weight(pressed) or pressed
    return float(held.relative_error)


@holds_for_every_scheme(20)
def test_the_unpressed_layer_computes_the_same(name: str, data: st.DataObject) -> None:
    case = data.draw(taken(name))
    pressed = press_layer(case.layer, name, draw_ranks(data, name, case.layer))
    dense = unpress_layer(pressed)
    assert type(dense) is type(case.layer)
    assert describe_layer(dense) == describe_layer(case.layer)
    assert torch.allclose(dense(case.example), pressed(case.example), atol=1e-9)


@holds_for_every_scheme(20)
def test_the_error_never_grows_with_a_rank(name: str, data: st.DataObject) -> None:
    case = data.draw(taken(name))
    more = draw_ranks(data, name, case.layer)
    raised = data.draw(st.integers(0, len(more) - 1))
    ranks = tuple(max(1, rank - (i == raised)) for i, rank in enumerate(more))
    low, high = (error_of(press_layer(case.layer, name, r)) for r in (ranks, more))
    # A fit may end at a slightly worse local optimum; TT-SVD's later truncations see other spaces.
    slack = 0.01 if name in ITERATIVE else 0.1 if name in TRAINS else 1e-7
    assert high <= (1 + slack) * low + 1e-7


@holds_for_every_scheme(15, [name for name in NAMES if name not in WITHOUT_GROUPS])
def test_groups_are_separate_layers(name: str, data: st.DataObject) -> None:
    case = data.draw(taken(name, grouped=True))
    groups = case.layer.groups
    ranks = draw_ranks(data, name, case.layer)
    together = press_layer(case.layer, name, ranks)
    separate = [press_layer(alone, name, ranks) for alone in separated(case.layer)]
    if name not in ITERATIVE:
        parts = zip(separate, case.example.chunk(groups, dim=1), strict=True)
        expected = torch.cat([alone(part) for alone, part in parts], 1)
        assert torch.allclose(together(case.example), expected, atol=1e-9)
    norms = [float(alone.weight.detach().norm()) for alone in separated(case.layer)]
    discarded = sum((n * error_of(a)) ** 2 for n, a in zip(norms, separate, strict=True))
    error = (discarded / sum(n**2 for n in norms)) ** 0.5
    assert error_of(together) == pytest.approx(error, rel=2e-3, abs=1e-6)


def separated(layer: nn.modules.conv._ConvNd) -> list[nn.Module]:
    """The layers, one a group, that a grouped convolution stands for."""
    geometry = ("stride", "padding", "dilation", "padding_mode")
    options = {key: getattr(layer, key) for key in geometry}
    if layer.transposed:
        options["output_padding"] = layer.output_padding
    layers = []
    for group in range(layer.groups):
        sizes = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        alone = type(layer)(
            *sizes, layer.kernel_size, bias=layer.bias is not None, **options
        ).double()
        with torch.no_grad():
            alone.weight.copy_(layer.weight.chunk(layer.groups)[group])
            if layer.bias is not None:
                alone.bias.copy_(layer.bias.chunk(layer.groups)[group])
        layers.append(alone)
    return layers


REFUSED = {
    "channel_svd": nn.Conv2d(6, 6, 3, groups=6),
    "spatial_svd": nn.Conv1d(4, 4, 3),
    "spatial_svd_horizontal": nn.Linear(4, 4),
    "spatial_channel_svd": nn.Conv1d(4, 4, 3),
    "channel_pruning": nn.Embedding(9, 4),
    "low_rank_sparse": nn.ConvTranspose2d(4, 6, 3),
    "pivoted_svd": nn.Conv2d(4, 6, 3),
    "tucker1_in": nn.Conv2d(3, 6, 3, groups=3),
    "tucker1_out": nn.ConvTranspose1d(6, 6, 3, groups=6),
    "tucker2": nn.Embedding(9, 4),
    "cp": nn.Linear(8, 6),
    "cp_nls": nn.Embedding(8, 6),
    "cp_corrected": nn.Linear(8, 6),
    "tensor_train": nn.Conv1d(5, 5, 7, groups=5),
    "tt_conv": nn.Conv2d(4, 6, 3, groups=2),
    "tt_weight": nn.Linear(1, 7),
    "svd_weight": nn.Linear(1, 7),
}


@every_scheme
def test_what_is_refused_is_refused_with_a_reason(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot take this .*: .+"):
        press_layer(REFUSED[name], name, 1)


@every_scheme
def test_every_scheme_takes_and_every_kind_is_taken(name: str) -> None:
    assert any(is_taken(name, layer) for layer in samples())


def samples() -> list[nn.Module]:
    convs = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return [nn.Linear(8, 6), nn.Embedding(9, 6), *(c(4, 6, 3) for c in (*convs, *transposed))]


@every_scheme
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_mode_and_gradients_are_kept(name: str, dtype: torch.dtype) -> None:
    for layer in samples():
        if not is_taken(name, layer):
            continue
        layer = layer.to(dtype).eval()
        layer.weight.requires_grad_(False)
        pressed = press_layer(layer, name, 1.0)
        assert not pressed.training
        for key, parameter in pressed.named_parameters():
            assert parameter.dtype == dtype
            assert parameter.requires_grad == key.endswith("bias")
        weight = layer.weight.float()
        error = (scheme(name).compose(pressed).float() - weight).norm() / weight.norm()
        assert error < {torch.float32: 1e-5}.get(dtype, 0.03)


@every_scheme
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_layer_on_a_gpu_is_pressed_there(name: str) -> None:
    for layer in samples():
        if is_taken(name, layer):
            pressed = press_layer(layer.cuda(), name, 1.0)
            assert all(p.is_cuda for p in pressed.parameters())


@every_scheme
def test_zero_weights_are_pressed(name: str) -> None:
    for layer in samples():
        if is_taken(name, layer):
            nn.init.zeros_(layer.weight)
            pressed = press_layer(layer, name, 1)
            assert scheme(name).compose(pressed).eq(0).all()


@every_scheme
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(name: str, value: float) -> None:
    for layer in samples():
        if is_taken(name, layer):
            layer.weight.data.view(-1)[0] = value
            with pytest.raises(InvalidArgumentError, match="weight has NaN or infinite"):
                press_layer(layer, name, 1)


@every_scheme
@pytest.mark.parametrize("ranks", [0, -1, (1, 1, 1, 1, 1, 1, 1), 10_000, 0.0, 1.5, "evbfm", None])
def test_ranks_that_cannot_be_are_refused(name: str, ranks: object) -> None:
    for layer in samples():
        if is_taken(name, layer):
            with pytest.raises(InvalidArgumentError):
                press_layer(layer, name, ranks)


@every_scheme
def test_another_default_device_does_not_matter(name: str) -> None:
    for layer in samples():
        if is_taken(name, layer):
            expected = press_layer(layer, name, 2)
            with torch.device("meta"):
                found = press_layer(layer, name, 2)
            for one, other in zip(found.parameters(), expected.parameters(), strict=True):
                assert torch.equal(one, other)
