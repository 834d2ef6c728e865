import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError
from tensorpress.utils.module_tree import refuse_scripts


def test_modules_of_torch_jit_are_refused_by_their_name() -> None:
    refuse_scripts(nn.Linear(2, 2))
    scripted = torch.jit.script(nn.Linear(4, 4))
    with pytest.raises(InvalidArgumentError, match="the model is compiled"):
        tp.plan(scripted, scheme="channel_svd", ranks=1)
    with pytest.raises(InvalidArgumentError, match="layer '1' is compiled"):
        tp.plan(nn.Sequential(nn.ReLU(), scripted), scheme="channel_svd", ranks=1)
