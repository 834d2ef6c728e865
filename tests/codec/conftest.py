import pytest
import torch
from tpz_models import own, pressed, saved

import tensorpress as tp
from tensorpress.codec import container


@pytest.fixture(scope="module")
def zoo_file(tmp_path_factory: pytest.TempPathFactory) -> container.Container:
    layers = {
        "ip2": {"modes": [20, 15, 10, 10], "ranks": 3},
        "ip3": {"modes": [40, 25], "ranks": 3},
    }
    model = pressed("lenet300100", overrides=layers)
    model.ip1.weight.data.zero_()  # a small file
    return container.read(saved(model, tmp_path_factory.mktemp("zoo"), network="lenet300100"))


@pytest.fixture(scope="module")
def own_file(tmp_path_factory: pytest.TempPathFactory) -> container.Container:
    torch.manual_seed(0)
    dense = own()
    model = tp.press(
        dense, tp.plan(dense, scheme="ada_tucker", overrides={"0": {"modes": [30, 20], "ranks": 3}})
    )
    return container.read(saved(model, tmp_path_factory.mktemp("own")))
