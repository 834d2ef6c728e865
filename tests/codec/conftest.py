import pytest
import torch
from torch import nn
from tpz_models import custom_model, press_network

import tensorpress as tp


@pytest.fixture(scope="module")
def zoo_model() -> nn.Module:
    layers = {
        "ip2": {"modes": [20, 15, 10, 10], "ranks": 3},
        "ip3": {"modes": [40, 25], "ranks": 3},
    }
    model = press_network("lenet300100", overrides=layers)
    model.ip1.weight.data.zero_()  # a small file
    return model


@pytest.fixture(scope="module")
def own_model() -> nn.Module:
    torch.manual_seed(0)
    dense = custom_model()
    return tp.press(
        dense, tp.plan(dense, scheme="ada_tucker", overrides={"0": {"modes": [30, 20], "ranks": 3}})
    )
