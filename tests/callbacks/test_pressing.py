"""Pressing in a training, whatever the trainer: when, and what the optimizer does afterwards."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tensorpress.callbacks.pressing import Pressing, is_pressed
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning import plan

SCHEMES = {
    "layers": {"scheme": "channel_svd", "ranks": 4},
    "weights": {"scheme": "tt_weight", "ranks": 4},
}


def network(normed=False):
    torch.manual_seed(0)
    layers = [nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 20), nn.Linear(20, 4)]
    if normed:
        weight_norm(layers[0])
    return nn.Sequential(*layers)


def make_optimizer(model, kind=torch.optim.AdamW):
    """Return an optimizer with the Trainer's groups: weights decay, biases and norms do not."""
    named = dict(model.named_parameters())
    plain = {name for name in named if "bias" in name or name.startswith("1.")}
    groups = [
        {"params": [p for name, p in named.items() if name not in plain], "weight_decay": 0.1},
        {"params": [p for name, p in named.items() if name in plain], "lr": 0.5},
    ]
    return kind(groups, lr=0.01)


def step(model, optimizer, seed=0):
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def press_in_training(model, optimizers, **options):
    plan_now = plan(model, **options, targets=["0", "2"])
    Pressing(plan_now, None, None).press(model, optimizers)
    assert is_pressed(model)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_groups_are_those_of_an_optimizer_of_the_pressed_model(scheme, normed):
    model = network(normed)
    optimizer = make_optimizer(model)
    step(model, optimizer)
    state = optimizer.state[model[3].weight]
    press_in_training(model, [optimizer], **SCHEMES[scheme])
    expected = make_optimizer(model)
    for group, other in zip(optimizer.param_groups, expected.param_groups, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in other["params"]]
        assert (group["lr"], group["weight_decay"]) == (other["lr"], other["weight_decay"])
    assert optimizer.state[model[3].weight] is state
    assert set(optimizer.state) <= set(model.parameters())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_factors_are_trained_and_the_state_loads_into_a_new_optimizer(scheme):
    model = network()
    optimizer = make_optimizer(model)
    step(model, optimizer)
    press_in_training(model, [optimizer], **SCHEMES[scheme])
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer, 1)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    again = copy.deepcopy(model)
    resumed = make_optimizer(again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, its_optimizer in ((model, optimizer), (again, resumed)):
        step(net, its_optimizer, 2)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_each_of_two_optimizers_gets_the_factors_of_its_own():
    model = network()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    loss_scale = nn.Parameter(torch.ones(()))
    second = torch.optim.SGD([loss_scale, *model[2].parameters()], lr=0.1)
    press_in_training(model, [first, second], scheme="channel_svd", ranks=4)
    assert [set(o.param_groups[0]["params"]) for o in (first, second)] == [
        set(model[0].parameters()),
        {*model[2].parameters(), loss_scale},
    ]


def test_what_was_frozen_stays_frozen():
    model = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    press_in_training(model, [optimizer], scheme="channel_svd", ranks=4)
    assert not any(p.requires_grad for p in model[0].parameters())
    assert set(optimizer.param_groups[0]["params"]) == set(model[1:].parameters())


def test_a_pressed_model_is_not_pressed_again():
    model = network()
    pressing = Pressing(lambda net: plan(net, scheme="channel_svd", ranks=4), 1, None)
    pressing.press(model)
    layer = model[0]
    pressing.press(model)
    assert model[0] is layer


@pytest.mark.parametrize(
    ("moment", "due"),
    [
        ({"step": None, "epoch": None}, [True, True, True]),
        ({"step": 10, "epoch": None}, [False, True, True]),
        ({"step": None, "epoch": 2}, [False, False, True]),
    ],
)
def test_the_moment(moment, due):
    pressing = Pressing(plan(network(), scheme="channel_svd", ranks=4), **moment)
    assert [pressing.due(*at) for at in ((0, 0.0), (10, 1.9), (11, 2.0))] == due
    assert not Pressing(None, None, None).due(0, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 3, "epoch": 1}, "step or epoch"),
        ({"step": 0, "epoch": None}, "at least 1"),
        ({"plan": None, "step": 3, "epoch": None}, "needs a plan"),
    ],
)
def test_moments_that_do_not_fit_together(options, message):
    some_plan = plan(network(), scheme="channel_svd", ranks=4)
    with pytest.raises(InvalidArgumentError, match=message):
        Pressing(**{"plan": some_plan, **options})
