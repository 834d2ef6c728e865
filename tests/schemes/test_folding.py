"""Weight norm, spectral norm and masks of pruning are folded where a model is pressed or coded."""

import threading
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import tensorpress as tp
from tensorpress.errors import ModelMismatchError
from tensorpress.measure.cost import count_params
from tensorpress.schemes.folding import fold
from tensorpress.utils.module_tree import copy_model

MAKERS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight norm": nn.utils.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: prune.random_unstructured(
        prune.l1_unstructured(layer, "weight", 0.5), "weight", 0.5
    ),
}

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


def make(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), MAKERS[name](nn.Linear(30, 20)))
    model(torch.randn(4, 20)).sum().backward()  # a hook now holds a tensor with a graph
    model.zero_grad()
    return model.eval()


@pytest.mark.parametrize("name", MAKERS)
def test_a_folded_model_is_plain_and_computes_the_same(name):
    model, x = make(name), torch.randn(4, 20)
    before, expected = set(model.state_dict()), model(x)
    folded = fold(model)
    assert set(folded.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(isinstance(value, nn.Parameter) for value in folded.parameters())
    torch.testing.assert_close(folded(x), expected)
    assert set(model.state_dict()) == before
    torch.testing.assert_close(model(x), expected)
    assert fold(folded) is folded


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_planned_pressed_and_saved_as_a_plain_model(name, tmp_path):
    model, x = make(name), torch.randn(4, 20)
    plan = tp.plan(model, scheme="channel_svd", overrides={"*": {"ranks": 1.0}})
    assert [layer.name for layer in plan.layers] == ["0", "2"]
    pressed = tp.press(model, plan)
    assert count_params(pressed) == plan.params
    torch.testing.assert_close(pressed(x), model(x), atol=1e-5, rtol=1e-4)
    for source in (model, pressed, tp.press(make(name), plan, inplace=True)):
        tp.save(source, tmp_path / "a.tpz", quantizer=tp.StepQuantizer(-160))
        loaded = tp.load(tmp_path / "a.tpz", make(name))
        torch.testing.assert_close(loaded(x), model(x), atol=1e-3, rtol=1e-3)


def test_a_mask_costs_nothing(tmp_path):
    dense = nn.Linear(200, 200)
    pruned = prune.l1_unstructured(deepcopy(dense), "weight", 0.95)
    sizes = [tp.save(model, tmp_path / "a.tpz") for model in (dense, pruned)]
    assert sizes[1] < 0.2 * sizes[0]
    plain = prune.remove(copy_model(pruned), "weight")
    assert tp.save(plain, tmp_path / "a.tpz") == sizes[1]
    half = tp.encode(pruned, tmp_path / "b.tpz", target_error=0.01)
    assert half.bytes < 0.3 * tp.encode(dense, tmp_path / "b.tpz", target_error=0.01).bytes


def test_other_parametrizations_stay():
    model = nn.Sequential(nn.Linear(8, 8))
    parametrize.register_parametrization(model[0], "weight", nn.Tanh())
    assert fold(model) is model


def test_what_cannot_be_copied_is_shared():
    model = nn.Sequential(nn.Linear(20, 20))
    model.lock, model.values = threading.Lock(), [1, 2]
    pressed = tp.press(model, tp.plan(model, scheme="channel_svd", ranks=2))
    assert pressed.lock is model.lock
    assert pressed.values is not model.values
    assert tp.unpress(pressed).lock is model.lock


def test_a_plan_that_does_not_fit_leaves_the_model_as_it_is() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(12, 10)))
    other = nn.Sequential(nn.Linear(14, 10))
    with pytest.raises(ModelMismatchError):
        tp.press(net, tp.plan(other, scheme="channel_svd", ranks=2), inplace=True)
    assert nn.utils.parametrize.is_parametrized(net[0])
