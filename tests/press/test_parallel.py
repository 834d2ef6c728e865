"""Pressing on executors: the result is that of one process."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from tensorpress import LayerPlan, Plan, plan, press
from tensorpress.errors import InvalidArgumentError, TensorPressError
from tensorpress.press import parallel
from tensorpress.schemes.layer_spec import weight_spec

SCHEMES = {"0": "tucker2", "1": "tt_weight", "2": "cp", "5": "tensor_train"}


@pytest.fixture(scope="module")
def model():
    """A layer of every form, in a dtype that NumPy does not know."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 12, 3),
        nn.Conv2d(12, 12, 3),
        nn.Conv2d(12, 6, 3),
        nn.Flatten(),
        nn.Linear(24, 32),
        nn.Linear(32, 20),
        nn.Linear(20, 16),
    )
    return net.to(torch.bfloat16, memory_format=torch.channels_last).eval()


def shared(name, shape):
    return LayerPlan(name, "scada_tucker", weight_spec(shape), (5, 5), {"modes": shape})


@pytest.fixture(scope="module")
def made(model):
    """A plan of layers that are decomposed alone, and of two that share a core."""
    result = {
        name: plan(model, scheme=scheme, ranks=0.4, targets=(name,)).layers[0]
        for name, scheme in SCHEMES.items()
    }
    result["4"] = shared("4", (32, 24))
    result["6"] = shared("6", (16, 20))
    return Plan("mixed", tuple(result[key] for key in sorted(result)))


def test_several_processes_find_what_one_finds(model, made):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, two = (press(model, made, processes=count) for count in (1, 2))
    finally:
        torch.set_num_threads(threads)
    expected, result = one.state_dict(), two.state_dict()
    assert result.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in result.items())
    assert {tensor.dtype for tensor in result.values()} == {torch.bfloat16}
    assert [two[i].relative_error for i in (0, 2, 5)] == [one[i].relative_error for i in (0, 2, 5)]
    assert all(p.requires_grad for p in two.parameters())


def test_a_layer_that_cannot_be_decomposed_is_named(made):
    layers = [layer for layer in made.layers if layer.name in ("0", "1")]
    weights = {layer.name: torch.ones(layer.shape) for layer in layers}
    weights["1"][0, 0] = float("nan")
    with (
        ThreadPoolExecutor(2) as executor,
        pytest.raises(InvalidArgumentError, match=r"layer '1': .*NaN"),
    ):
        list(parallel.decompose_each(layers, lambda layer: weights[layer.name], executor))


SCRIPT = """
from torch import nn
from tensorpress.planning import plan
from tensorpress.press.press import press

net = nn.Sequential(nn.Linear(20, 16), nn.Linear(16, 12))
press(net, plan(net, scheme="channel_svd", ranks=3), processes=2)
"""


def test_a_script_without_a_guard_is_told_so(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    told = done.stderr.strip().splitlines()[-1]
    assert f"{TensorPressError.__name__}: a process died during '0', '1'." in told
    assert 'if __name__ == "__main__":' in told


@pytest.mark.parametrize("processes", [0, -1, 1.5, True, "2"])
def test_processes_are_a_positive_number(model, made, processes):
    with pytest.raises(InvalidArgumentError, match="processes must be an integer of at least 1"):
        press(model, made, processes=processes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_one_process_is_all(model, made):
    with pytest.raises(InvalidArgumentError, match="layer '0' is on cuda:0: use one process"):
        press(model.cuda(), made, processes=2)
