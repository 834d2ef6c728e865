import pytest
import torch
from torch import nn
from tpz_models import own, pressed

import tensorpress as tp


@pytest.fixture(scope="module")
def zoo_model() -> nn.Module:
    layers = {
        "ip2": {"modes": [20, 15, 10, 10], "ranks": 3},
        "ip3": {"modes": [40, 25], "ranks": 3},
    }
    model = pressed("lenet300100", overrides=layers)
    model.ip1.weight.data.zero_()  # a small file
    return model


@pytest.fixture(scope="module")
def own_model() -> nn.Module:
    torch.manual_seed(0)
    dense = own()
    return tp.press(
        dense, tp.plan(dense, scheme="ada_tucker", overrides={"0": {"modes": [30, 20], "ranks": 3}})
    )
