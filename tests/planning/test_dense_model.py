"""Layers whose weight the modules around them use."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.dense_model import record_readers

REASON = "another module reads its weight"


class Around(nn.Module):
    """Calls one layer, casts to the dtype of its weight, and computes with another's weight."""

    def __init__(self):
        super().__init__()
        self.called, self.read = nn.Linear(20, 20), nn.Linear(20, 20)

    def forward(self, x):
        x = self.called(x.to(self.called.weight.dtype))
        return functional.linear(x, self.read.weight, self.read.bias)


def test_a_weight_that_is_used_is_noted_and_one_whose_dtype_is_asked_for_is_not():
    model = Around()
    expected = model(torch.ones(1, 20))
    with record_readers(dict(model.named_children())) as read:
        assert torch.equal(model(torch.ones(1, 20)), expected)
    assert read == {"read"}
    assert type(model.called) is type(model.read) is nn.Linear


def test_the_layers_are_what_they_were_after_an_error():
    model = Around()
    with pytest.raises(RuntimeError), record_readers(dict(model.named_children())):
        model(torch.ones(1, 21))
    assert type(model.called) is nn.Linear
    assert "running" not in vars(model.called)


def test_such_a_layer_is_not_replaced_but_its_weight_may_be_rebuilt():
    model, x = Around(), torch.ones(1, 20)
    plan = tp.plan(model, x, scheme="channel_svd", ranks=2)
    assert [layer.name for layer in plan.layers] == ["called"]
    assert plan.unpressed["read"] == REASON
    rebuilt = tp.plan(model, x, scheme="tt_weight", ranks=2)
    assert [layer.name for layer in rebuilt.layers] == ["called", "read"]
    with pytest.raises(InvalidArgumentError, match=REASON):
        tp.plan(model, x, scheme="channel_svd", overrides={"read": {"ranks": 2}})


def test_a_model_without_values_is_looked_at_as_well():
    with torch.device("meta"):
        model, x = Around(), torch.ones(1, 20)
    assert REASON in tp.plan(model, x, scheme="channel_svd", ranks=2).unpressed["read"]
