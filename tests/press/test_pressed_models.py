"""What can be done with a model can be done with it pressed."""

import io
from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import nn

from tensorpress import plan, press
from tensorpress.press.press import build_skeleton
from tensorpress.schemes.parametrization import stored_factors

LAYER_FORM = ["channel_svd", "spatial_svd", "tucker2", "cp", "tensor_train", "tt_conv"]
WEIGHT_FORM = ["tt_weight", "ada_tucker", "scada_tucker"]
FORWARDS = ["tucker2", "tensor_train", "tt_conv", "tt_weight", "ada_tucker"]
"""One scheme of every way to compute; scada_tucker computes as ada_tucker, all others as chains."""
every_scheme = pytest.mark.parametrize("name", LAYER_FORM + WEIGHT_FORM)


class Net(nn.Module):
    """Convolutions, one of them called twice, a norm with buffers, and matrices."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 20))

    def forward(self, x):
        x = self.norm(self.again(self.again(self.first(x)).relu()))
        return self.head(x.flatten(1))


def planned_by(name):
    how = {"budget": "params=1300"} if "ada" in name else {"ranks": 0.3}
    made = plan(seeded(), scheme=name, **how)
    assert len(made.layers) >= 2
    return made


@cache
def _pressed_by(name):
    made = planned_by(name)
    return press(seeded(), made), made


def pressed_by(name):
    """A model and its plan, for the caller to change."""
    return deepcopy(_pressed_by(name))


def seeded():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def x():
    return torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1))


@every_scheme
def test_a_deep_copy_computes_the_same_and_is_independent(name, x):
    pressed, _ = pressed_by(name)
    expected = pressed(x)
    copy = deepcopy(pressed)
    with torch.no_grad():
        for parameter in pressed.parameters():
            parameter.zero_()
    assert torch.equal(copy(x), expected)
    assert not pressed(x).any()


def test_a_copy_of_a_shared_core_is_shared_by_the_copies(x):
    pressed, made = pressed_by("scada_tucker")
    copy = deepcopy(pressed)
    cores = {id(stored_factors(copy.get_submodule(x.name)).original0) for x in made.layers}
    assert len(made.layers) > 2
    assert len(cores) == 1
    assert sum(p.numel() for p in copy.parameters()) == made.params


@every_scheme
def test_a_state_dict_fills_a_skeleton_and_nothing_is_missing(name, x):
    pressed, made = pressed_by(name)
    torch.manual_seed(7)
    other = build_skeleton(Net(), made).eval()
    other.load_state_dict(pressed.state_dict(), strict=True)
    assert torch.equal(other(x), pressed(x))


@every_scheme
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_is_taken_later(name, dtype, x):
    pressed, _ = pressed_by(name)
    expected = pressed(x)
    result = pressed.to(dtype)(x.to(dtype))
    assert result.dtype == dtype
    assert {p.dtype for p in pressed.parameters()} == {dtype}
    tolerance = 1e-5 if dtype == torch.float64 else 0.1 * float(expected.detach().abs().max())
    torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=0)


@every_scheme
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_plan_made_in_single_precision_suits_another_one(name, dtype, x):
    single, made = pressed_by(name)
    pressed = press(seeded().to(dtype), made)
    assert {p.dtype for p in pressed.parameters()} == {dtype}
    expected = single(x)
    result = pressed.float()(x)
    error = float(((result - expected).norm() / expected.norm()).detach())
    assert error < 0.2


@every_scheme
def test_it_moves_to_the_meta_device_and_back(name, x):
    pressed, _ = pressed_by(name)
    expected, state = pressed(x), deepcopy(pressed.state_dict())
    nowhere = pressed.to("meta")
    assert nowhere(x.to("meta")).shape == expected.shape
    nowhere.to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(nowhere(x), expected)


@every_scheme
def test_modes_and_what_is_frozen_stay(name):
    net = seeded().train()
    net.again.eval()
    net.first.weight.requires_grad_(False)
    net.head[0].bias.requires_grad_(False)
    made = planned_by(name)
    pressed, names = press(net, made), [layer.name for layer in made.layers]
    for key in names:
        dense, layer = net.get_submodule(key), pressed.get_submodule(key)
        assert all(part.training == dense.training for part in layer.modules())
    if "first" in names:
        assert all(
            p.requires_grad == (key == "bias" or key.endswith(".bias"))
            for key, p in pressed.first.named_parameters()
            # Whoever shares a core trains it.
            if not (name == "scada_tucker" and key.endswith("original0"))
        )
    pressed.eval()
    assert not any(module.training for module in pressed.modules())


@every_scheme
def test_a_step_of_training_reaches_all_factors(name, x):
    pressed, _ = pressed_by(name)
    pressed.train()
    before = deepcopy(pressed.state_dict())
    optimizer = torch.optim.SGD(pressed.parameters(), lr=0.1)
    pressed(x).square().sum().backward()
    optimizer.step()
    keys = [key for key, _ in pressed.named_parameters()]
    assert all(p.grad is not None for p in pressed.parameters())
    moved = [key for key in keys if not torch.equal(pressed.state_dict()[key], before[key])]
    assert set(keys) - set(moved) <= {"again.bias", "first.bias"}


@pytest.mark.parametrize("name", FORWARDS)
def test_it_compiles_without_a_graph_break(name, x):
    pressed, _ = pressed_by(name)
    torch._dynamo.reset()
    compiled = torch.compile(pressed, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), pressed(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FORWARDS)
def test_it_is_exported_at_any_batch(name, x):
    pressed, _ = pressed_by(name)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(pressed, (x,), dynamic_shapes=(batch,))
    more = torch.cat([x, x, x])
    torch.testing.assert_close(program.module()(more), pressed(more), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LAYER_FORM)
def test_a_whole_model_of_other_layers_is_pickled(name, x):
    pressed, _ = pressed_by(name)
    file = io.BytesIO()
    torch.save(pressed, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(x), pressed(x))


@pytest.mark.parametrize("name", WEIGHT_FORM)
def test_torch_says_why_rebuilt_weights_are_not_pickled(name):
    pressed, _ = pressed_by(name)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        torch.save(pressed, io.BytesIO())
