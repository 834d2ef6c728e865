import pytest
from torch import nn

from tensorpress.hugging_face.factor_names import factorized_weights
from tensorpress.planning import plan
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.press.press import press
from tensorpress.schemes.registry import SCHEMES


def net():
    layers = {"conv": nn.Conv2d(16, 24, 3), "fc": nn.Linear(40, 30), "lstm": nn.LSTM(20, 30)}
    return nn.ModuleDict(layers | {"head": nn.Sequential(nn.Linear(30, 30), nn.ReLU())})


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_factors_of_every_scheme_are_recognized(scheme):
    dense = net()
    options = {"budget": "params=70%"} if scheme.endswith("ada_tucker") else {"ranks": 3}
    model = press(dense, plan(dense, scheme=scheme, **options))
    dropped = dense.state_dict().keys() - model.state_dict().keys()
    weights = {name for name in dropped if "bias" not in name}
    assert len(weights) == len(plan_from_model(model).layers) > 0
    assert factorized_weights(model.state_dict().keys()) == weights


def test_dense_layers_in_a_list_are_no_factors():
    names = ["head.0.weight", "head.2.weight", "head.0.bias", "low_rank.0.weight", "fc.weight"]
    assert factorized_weights(names) == set()
