"""A plan is read back from a pressed model, or it is said that no plan can."""

import pytest
import torch
from torch import nn

from tensorpress import ModelMismatchError, plan, press
from tensorpress.models import zoo
from tensorpress.planning import plan_from_model
from tensorpress.schemes.channel_svd import ChannelSVD
from tensorpress.schemes.press_layer import press_layer
from tensorpress.schemes.registry import rank_schemes, scheme


@pytest.mark.parametrize("init", ["decompose", "kaiming"])
@pytest.mark.parametrize("name", rank_schemes())
def test_every_scheme(name, init):
    torch.manual_seed(0)  # factors of cp may cancel, and be refused in bfloat16
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2), nn.Linear(30, 20), nn.Embedding(50, 12, padding_idx=1)
    ).to(torch.bfloat16)
    made = plan(model, scheme=name, ranks=0.3)
    read = plan_from_model(press(model, made, init=init))
    assert (read.scheme, read.layers, read.other_params) == (name, made.layers, made.other_params)
    assert read.params == made.params


def test_layers_of_several_schemes():
    model = zoo.build("lenet5")
    given = {"ip1": {"scheme": "scada_tucker", "modes": [500, 800], "ranks": 9}}
    made = plan(model, scheme="tucker2", ranks=0.2, overrides=given)
    read = plan_from_model(press(model, made))
    assert read.scheme == "tucker2, scada_tucker"
    assert read.layers == made.layers
    assert read.params == made.params


def test_a_subclass_with_a_rebuilt_weight():
    class Mine(nn.Linear):
        pass

    model = nn.Sequential(Mine(30, 20))
    made = plan(model, scheme="tt_weight", ranks=4)
    assert plan_from_model(press(model, made)).layers == made.layers


@pytest.mark.parametrize("name", ["tensor_train", "tt_weight"])
@pytest.mark.parametrize("rows", [(4, 16), (2, 4, 8)])
def test_modes_of_ones_own_are_options(name, rows):
    options = {"row_modes": rows, "column_modes": rows[::-1]}
    model = nn.Sequential(nn.Linear(64, 64))
    made = plan(model, scheme=name, overrides={"0": {"ranks": 2, **options}})
    assert made.layers[0].options == options
    assert plan_from_model(press(model, made)).layers == made.layers
    single = press_layer(model[0], scheme(name, options), 2)
    assert plan_from_model(nn.Sequential(single)).layers == made.layers


def test_a_scheme_of_another_kind_than_its_name_says_is_told():
    pressed = press_layer(nn.Conv2d(8, 8, 3), ChannelSVD("channel_svd", "", "in"), 2)
    with pytest.raises(ModelMismatchError, match=r"layer '0' differs from what .* builds at ranks"):
        plan_from_model(nn.Sequential(pressed))


def test_own_schemes_are_told():
    pressed = press_layer(nn.Linear(9, 9), ChannelSVD("mine", "My own."), 2)
    with pytest.raises(ModelMismatchError, match="layer '0' is pressed by scheme 'mine'"):
        plan_from_model(nn.Sequential(pressed))


def test_a_changed_layer_is_told():
    pressed = press_layer(nn.Conv2d(8, 8, 3), "tucker2", 2)
    pressed[1].stride = (2, 2)
    with pytest.raises(ModelMismatchError, match="layer '0' differs from what tucker2 builds"):
        plan_from_model(nn.Sequential(pressed))
    twice = press_layer(nn.Linear(30, 30), "channel_svd", 9)
    twice[0] = press_layer(twice[0], "channel_svd", 2)
    with pytest.raises(ModelMismatchError, match="layer '0' differs from what channel_svd builds"):
        plan_from_model(nn.Sequential(twice))
