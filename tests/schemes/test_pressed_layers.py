"""What a pressed layer keeps of its layer, and what can be done with it as with any module."""

import io
from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.press_layer import press_layer, unpress_layer
from tensorpress.schemes.registry import rank_schemes, scheme

NAMES = tuple(rank_schemes())
LAYER_FORM = tuple(name for name in NAMES if scheme(name).form == "layer")
every_scheme = pytest.mark.parametrize("name", NAMES)


def seeded(build):
    torch.manual_seed(0)
    return build()


def layers():
    """A layer of several kinds with an input."""
    made = {
        "linear": (nn.Linear(8, 6), torch.randn(5, 8)),
        "embedding": (nn.Embedding(10, 6), torch.tensor([[1, 9, 0]])),
        "conv": (nn.Conv2d(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 7, 7)),
        "grouped": (nn.Conv1d(6, 4, 3, groups=2), torch.randn(2, 6, 9)),
        "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), torch.randn(2, 4, 5, 5)),
    }
    return made.items()


def conv_or_linear(name):
    """A convolution, or for a scheme that takes none a Linear, of 4 inputs and 6 outputs."""
    conv = nn.Conv2d(4, 6, 3)
    refused = scheme(name).refusal(describe_layer(conv)) is not None
    return nn.Linear(4, 6) if refused else conv


@cache
def _taken(name):
    return [
        (kind, layer, press_layer(layer, name, 2), x)
        for kind, (layer, x) in seeded(layers)
        if scheme(name).refusal(describe_layer(layer)) is None
    ]


def taken(name):
    """Every one of `layers` that a scheme takes, and pressed; for the caller to change."""
    return deepcopy(_taken(name))


@every_scheme
def test_the_layer_and_the_random_state_are_untouched(name):
    for _, layer, _, _ in taken(name):
        before, held = deepcopy(layer.state_dict()), dict(layer.named_parameters())
        kind, state = type(layer), torch.get_rng_state()
        press_layer(layer, name, 2)
        assert torch.equal(torch.get_rng_state(), state)
        assert type(layer) is kind
        assert dict(layer.named_parameters()).keys() == held.keys()
        assert all(p is held[key] for key, p in layer.named_parameters())
        assert all(torch.equal(v, before[key]) for key, v in layer.state_dict().items())


@every_scheme
def test_nothing_is_shared_with_the_layer(name):
    for _, layer, pressed, x in taken(name):
        expected = pressed(x).clone()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
        assert torch.equal(pressed(x), expected)


@every_scheme
def test_pressing_twice_gives_the_same(name):
    for _, layer, pressed, _ in taken(name):
        again = press_layer(layer, name, 2)
        assert all(map(torch.equal, pressed.parameters(), again.parameters()))


@every_scheme
@pytest.mark.parametrize("training", [True, False])
def test_mode_and_a_frozen_bias_are_kept_both_ways(name, training):
    layer = conv_or_linear(name).train(training)
    layer.bias.requires_grad_(False)
    pressed = press_layer(layer, name, 2)
    assert all(module.training == training for module in pressed.modules())
    frozen = [p.shape for p in pressed.parameters() if not p.requires_grad]
    assert frozen == [(6,)]
    dense = unpress_layer(pressed)
    assert dense.training == training
    assert (dense.weight.requires_grad, dense.bias.requires_grad) == (True, False)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pivoted_svd"])
def test_how_the_weight_lies_in_memory_does_not_matter(name):
    groups = 1 if name == "tt_conv" else 2  # which takes no groups
    layer = seeded(lambda: nn.Conv2d(4, 6, 3, groups=groups))
    x = torch.randn(2, 4, 6, 6)
    expected = press_layer(layer, name, 2)(x)
    lying = deepcopy(layer).to(memory_format=torch.channels_last)
    assert lying.weight.stride() != layer.weight.stride()
    torch.testing.assert_close(press_layer(lying, name, 2)(x), expected, atol=1e-4, rtol=1e-4)
    wide = torch.zeros(12, 4 // groups, 3, 3)
    wide[::2] = layer.weight.detach()
    lying.weight = nn.Parameter(wide[::2])
    assert not lying.weight.is_contiguous()
    torch.testing.assert_close(press_layer(lying, name, 2)(x), expected, atol=1e-4, rtol=1e-4)


@every_scheme
def test_a_half_precision_layer_is_decomposed_in_full_and_runs(name):
    layer = seeded(lambda: conv_or_linear(name)).half()
    pressed = press_layer(layer, name, 2)
    full = press_layer(deepcopy(layer).double(), name, 2)
    weight, expected = scheme(name).compose(pressed).double(), scheme(name).compose(full)
    assert (weight - expected).norm() < 2e-3 * expected.norm()
    x = torch.randn(1, 4, 4, 4)
    assert torch.isfinite(pressed(x.half())).all()


@every_scheme
def test_a_deep_copy_computes_the_same_and_is_independent(name):
    for _, _, pressed, x in taken(name):
        expected = pressed(x).clone()
        copy = deepcopy(pressed)
        assert torch.equal(copy(x), expected)
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.zero_()
        assert torch.equal(pressed(x), expected)
        assert not copy(x).any()


@every_scheme
def test_a_state_dict_fills_the_skeleton(name):
    for _, layer, pressed, x in taken(name):
        spec = describe_layer(layer)
        ranks = scheme(name).choose_ranks(layer, 2)
        like = layer.weight.detach()
        empty = scheme(name).skeleton(spec, ranks, like=like)
        empty.load_state_dict(pressed.state_dict())
        assert torch.equal(empty(x), pressed(x))
        meta = scheme(name).skeleton(spec, ranks, like=like.to("meta"))
        assert {p.device.type for p in meta.parameters()} == {"meta"}
        meta.load_state_dict(pressed.state_dict(), assign=True)
        assert torch.equal(meta(x), pressed(x))


@pytest.mark.parametrize("name", LAYER_FORM)
def test_a_pickled_layer_is_the_same(name):
    for _, _, pressed, x in taken(name):
        file = io.BytesIO()
        torch.save(pressed, file)
        file.seek(0)
        found = torch.load(file, weights_only=False)
        assert torch.equal(found(x), pressed(x))
        assert (found.spec, found.scheme, found.ranks) == (
            pressed.spec,
            pressed.scheme,
            pressed.ranks,
        )


@every_scheme
def test_another_dtype_can_be_taken_later(name):
    for _, _, pressed, x in taken(name):
        expected = pressed(x)
        x = x.double() if x.is_floating_point() else x
        found = pressed.double()(x)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected.double(), atol=1e-4, rtol=1e-4)
        assert scheme(name).compose(pressed).dtype == torch.float64


@every_scheme
def test_a_step_of_training_lowers_the_loss(name):
    for _, _, pressed, x in taken(name):
        target = torch.zeros_like(pressed(x))
        optimizer = torch.optim.SGD(pressed.parameters(), lr=1e-3)
        loss = functional.mse_loss(pressed(x), target)
        loss.backward()
        assert all(p.grad is not None for p in pressed.parameters())
        optimizer.step()
        assert functional.mse_loss(pressed(x), target) < loss


@every_scheme
def test_a_trained_layer_is_unpressed_as_it_is_now(name):
    for _, _, pressed, x in taken(name):
        with torch.no_grad():
            for parameter in pressed.parameters():
                parameter.add_(0.1)
        dense = unpress_layer(pressed)
        torch.testing.assert_close(dense(x), pressed(x), atol=1e-4, rtol=1e-4)
        assert torch.equal(dense.weight, scheme(name).compose(pressed))


@every_scheme
def test_single_examples_run_without_a_batch(name):
    for _, _, pressed, x in taken(name):
        torch.testing.assert_close(pressed(x[0]), pressed(x)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tucker2", "conv"),
        ("cp", "transposed"),
        ("tensor_train", "linear"),
        ("tensor_train", "embedding"),
        ("tt_weight", "conv"),
    ],
)
def test_exported_programs_compute_the_same_at_any_batch(name, kind):
    pressed, x = next((p.eval(), x) for k, _, p, x in taken(name) if k == kind)
    batch = torch.export.Dim("batch", min=2, max=64)
    three = torch.cat([x, x, x])
    program = torch.export.export(pressed, (three,), dynamic_shapes=({0: batch},)).module()
    for inputs in (three, torch.cat([x] * 5)):
        torch.testing.assert_close(program(inputs), pressed(inputs))


@every_scheme
def test_torch_compile_takes_a_pressed_layer_as_one_graph(name):
    for kind, _, pressed, x in taken(name):
        if kind in ("linear", "conv"):
            torch.compiler.reset()
            compiled = torch.compile(pressed.eval(), backend="eager", fullgraph=True)
            torch.testing.assert_close(compiled(x), pressed(x))


def test_layers_that_are_not_pressed_are_not_unpressed():
    for layer in (
        nn.Linear(4, 3),
        nn.Sequential(nn.Linear(4, 3)),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 5, 3)),
    ):
        with pytest.raises(InvalidArgumentError, match="is not a pressed layer"):
            unpress_layer(layer)


@every_scheme
def test_only_the_scheme_that_pressed_a_layer_composes_it(name):
    other = press_layer(nn.Conv2d(4, 5, 3), "channel_svd" if name != "channel_svd" else "cp", 2)
    for layer in (other, nn.Conv2d(4, 5, 3)):
        with pytest.raises(InvalidArgumentError, match=f"this .* is not pressed by {name}"):
            scheme(name).compose(layer)


@every_scheme
def test_a_pressed_layer_is_not_pressed_again(name):
    pressed = press_layer(conv_or_linear(name), name, 2)
    with pytest.raises(InvalidArgumentError, match="cannot be pressed"):
        press_layer(pressed, "channel_svd", 1)


@every_scheme
def test_a_module_around_it_may_read_its_weight_and_bias(name):
    for kind, layer, pressed, x in taken(name):
        expected = scheme(name).compose(pressed).detach()
        assert pressed.weight.dtype == expected.dtype
        assert pressed.weight.shape == expected.shape
        torch.testing.assert_close(pressed.weight.detach(), expected)
        if kind == "linear":
            found = functional.linear(x, pressed.weight, pressed.bias)
            torch.testing.assert_close(found, pressed(x), atol=1e-5, rtol=1e-5)
            found.sum().backward()
            assert all(p.grad is not None for p in pressed.parameters())
        if layer.weight.ndim > 2 and scheme(name).form == "layer":
            assert any(pressed.bias is parameter for parameter in pressed.parameters())


@pytest.mark.parametrize("name", LAYER_FORM)
def test_its_weight_is_no_parameter_and_cannot_be_changed(name):
    for _, layer, pressed, x in taken(name):
        assert "weight" not in pressed.state_dict()
        before = pressed(x).clone()
        other = nn.Parameter(torch.randn_like(layer.weight))
        with pytest.raises(InvalidArgumentError, match=rf"pressed by {name} is composed .*unpress"):
            pressed.weight = other
        with pytest.raises(InvalidArgumentError, match="composed of factors"):
            pressed.weight.data = other
        with pytest.raises(InvalidArgumentError, match="composed of factors"):
            nn.init.zeros_(pressed.weight)
        with pytest.raises(InvalidArgumentError, match="composed of factors"):
            pressed.weight.requires_grad = False
        assert torch.equal(pressed(x), before)
