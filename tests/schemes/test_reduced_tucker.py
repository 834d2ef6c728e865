"""Tucker weights without the freedom of their bases."""

from copy import deepcopy
from math import prod

import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning import plan_from_model
from tensorpress.schemes.tucker_weight import TuckerWeight, tucker_weight

LAYER = {"modes": [10, 4, 9], "ranks": [4, 2, 5], "reduced": True}


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(18, 20), nn.ReLU(), nn.Linear(20, 3))


def pressed(init="decompose", **changes):
    dense = model()
    plan = tp.plan(dense, scheme="ada_tucker", overrides={"0": LAYER | changes})
    return tp.press(dense, plan, init=init)


def test_a_decomposition_rebuilds_the_same_weight_from_fewer_values():
    full, reduced = pressed(reduced=False), pressed()
    torch.testing.assert_close(reduced[0].weight, full[0].weight, rtol=1e-4, atol=1e-5)
    saved = tucker_weight(full[0]).num_params - tucker_weight(reduced[0]).num_params
    assert saved == 4**2 + 2**2 + 5**2
    assert sum(p.numel() for p in reduced[0].parametrizations.parameters()) == (
        tucker_weight(reduced[0]).num_params
    )


def test_its_map_is_locally_one_to_one_where_that_of_the_full_form_is_not():
    """The Jacobian of weight by factors has full column rank: no direction is redundant."""
    for reduced in (False, True):
        tucker = TuckerWeight((12, 15), (4, 3, 5, 3), (2, 2, 2, 2), reduced=reduced)
        shapes = [tucker.core_shape, *tucker.matrix_shapes]
        factors = tuple(torch.randn(*shape, dtype=torch.float64) for shape in shapes)
        parts = torch.autograd.functional.jacobian(tucker, factors)
        jacobian = torch.cat([p.reshape(180, -1) for p in parts], dim=1)
        redundant = jacobian.shape[1] - int(torch.linalg.matrix_rank(jacobian))
        assert redundant == (0 if reduced else 4 * 2**2)


def test_drawn_factors_give_the_weight_the_deviation_of_the_initializer():
    weight = pressed(init="kaiming")[0].weight
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx((2 / 18) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("ranks", [[4, 2, 5], [10, 4, 9], [10, 1, 1]])
def test_files_and_plans_keep_it(tmp_path, ranks):
    net = pressed(init="kaiming", ranks=ranks)
    again = plan_from_model(net)
    assert again.layers[0].options["reduced"]
    assert type(again).from_dict(again.to_dict()) == again
    assert again.layers[0].factor_params == tucker_weight(net[0]).num_params
    assert "reduced" in str(again)
    tp.save(net, tmp_path / "a.tpz")
    loaded = tp.load(tmp_path / "a.tpz", model())
    inputs = torch.randn(5, 18)
    assert plan_from_model(loaded).layers == again.layers
    torch.testing.assert_close(loaded(inputs), net.eval()(inputs), rtol=0.1, atol=0.1)


def test_it_trains():
    net = pressed(init="kaiming")
    before = [p.clone() for p in net[0].parametrizations.parameters()]
    net(torch.randn(4, 18)).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    after = list(net[0].parametrizations.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert deepcopy(net)[0].weight.shape == (20, 18)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diagonal": True, "ranks": 3}, "reduced needs a full core"),
        ({"ranks": [4, 5, 5]}, "rank 2 of .* must be from 1 to"),
    ],
)
def test_what_cannot_be_reduced(changes, message):
    with pytest.raises(InvalidArgumentError, match=message):
        pressed(**changes)


def test_a_shared_core_cannot_be_reduced():
    dense = model()
    overrides = {"0": {"modes": [20, 18], "ranks": [3, 3], "reduced": True}}
    with pytest.raises(InvalidArgumentError, match="reduced needs a full core"):
        tp.plan(dense, scheme="scada_tucker", overrides=overrides)


def test_a_weight_whose_first_rows_say_nothing_needs_another_start():
    layer = nn.Linear(6, 8)
    layer.weight.data[:3] = 0
    tucker = TuckerWeight((8, 6), (8, 6), (2, 2), reduced=True)
    with pytest.raises(InvalidArgumentError, match="mode 0 cannot be reduced"):
        tucker.attach(layer)
    assert prod(tucker.shape) == 48
