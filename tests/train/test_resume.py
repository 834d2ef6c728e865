"""An interrupted run, continued, ends in the very same bits."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tensorpress.train import History, StraightThrough, TrainConfig, fit
from tensorpress.train.checkpoint import read_checkpoint

EPOCHS = 4
N = 40


class Interrupted(Exception):  # noqa: N818 (it is not an error)
    """Stands for whatever ends a process."""


class Noisy(Dataset):
    """Augments with numpy's global generator, as many a user's data set does."""

    def __init__(self, die_after=None):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(N, 6, generator=generator)
        self.die_after, self.read = die_after, 0

    def __len__(self):
        return N

    def __getitem__(self, index):
        if self.read == self.die_after:
            raise Interrupted
        self.read += 1
        noise = torch.from_numpy(np.random.normal(0, 0.1, 6)).float()  # noqa: NPY002
        return self.inputs[index] + noise, int(self.inputs[index, 0] > 0)


class Product(nn.Module):
    def __init__(self, core):
        super().__init__()
        self.core = core

    def forward(self, factor):
        return factor @ self.core


def network():
    """Return dropout, batch norm and two layers whose weights share one core."""
    torch.manual_seed(11)
    layers = [nn.Linear(6, 6), nn.Linear(6, 6)]
    core = nn.Parameter(torch.randn(6, 6) / 2)
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Product(core))
    return nn.Sequential(
        layers[0], nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), layers[1], nn.Linear(6, 2)
    )


def loader(kind, die_after=None):
    if kind == "own generator":
        generator = torch.Generator().manual_seed(9)
        return DataLoader(Noisy(die_after), 8, shuffle=True, generator=generator)
    return DataLoader(Noisy(die_after), 8, shuffle=True)


def same(left, right):
    state, other = left.state_dict(), right.state_dict()
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


CASES = {
    "momentum": ({"optimizer": "sgd", "lr": 0.1, "schedule": "cosine"}, None, "global"),
    "adam": ({"lr": 0.01, "warmup_epochs": 1.5}, None, "global"),
    "own generator": ({"lr": 0.01}, None, "own generator"),
    "fp16": ({"lr": 0.01, "precision": "fp16", "clip_norm": 1.0}, None, "global"),
    "step": (
        {"optimizer": "adamw", "lr": 0.01, "schedule": "step", "step_epochs": 1},
        None,
        "global",
    ),
    "straight-through": (
        {"lr": 0.01, "optimizer": "sgd"},
        StraightThrough({"0.parametrizations.weight.0.core": lambda v: (4 * v).round() / 4}),
        "global",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("die_after", [N + 13, 2 * N, 3 * N + 39])
def test_a_run_killed_in_an_epoch_resumes_to_the_same_bits(tmp_path, case, die_after):
    options, weights, kind = CASES[case]
    config = TrainConfig(epochs=EPOCHS, **options)
    whole, broken, resumed = network(), network(), network()
    history = fit(whole, loader(kind), config, weights=weights)
    path = tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        fit(broken, loader(kind, die_after), config, weights=weights, checkpoint=path)
    with torch.no_grad():  # nothing but the file may matter
        [parameter.normal_() for parameter in resumed.parameters()]
    torch.manual_seed(12345)
    continued = fit(resumed, loader(kind), config, weights=weights, checkpoint=path)
    assert same(resumed, whole)
    seconds = {"epochs": {"__all__": {"seconds"}}}
    assert continued.model_dump(exclude=seconds) == history.model_dump(exclude=seconds)
    assert resumed[0].parametrizations.weight[0].core is resumed[4].parametrizations.weight[0].core


def test_channels_last_is_resumed_to_the_same_bits(tmp_path):
    inputs = torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    batches = DataLoader(TensorDataset(inputs, torch.arange(16) % 3), 4, shuffle=True)
    config = TrainConfig(epochs=3, lr=0.01, channels_last=True)

    def conv():
        torch.manual_seed(2)
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))

    def interrupt(metrics):
        if metrics.epoch == 2:
            raise Interrupted

    whole, resumed = conv(), conv()
    fit(whole, batches, config)
    path = tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        fit(conv(), batches, config, checkpoint=path, on_epoch=interrupt)
    fit(resumed, batches, config, checkpoint=path)
    assert same(resumed, whole)


def test_a_finished_run_is_only_loaded(tmp_path):
    config = TrainConfig(epochs=2, lr=0.01)
    first, second = network(), network()
    history = fit(first, loader("global"), config, checkpoint=tmp_path / "run.pt")
    epochs = []
    resumed = fit(
        second, loader("global"), config, checkpoint=tmp_path / "run.pt", on_epoch=epochs.append
    )
    assert same(first, second)
    assert resumed == history
    assert epochs == []


SCRIPT = """
import os, signal, sys
import torch
from torch import nn
from tensorpress.train import TrainConfig, fit

class Batches(list):
    given = 0
    def __iter__(self):
        for batch in list.__iter__(self):
            if self.given == die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            self.given += 1
            yield batch

def train(checkpoint):
    inputs = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    batches = Batches((x, (x[:, 0] > 0).long()) for x in inputs.split(4))
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    fit(model, batches, TrainConfig(epochs=4, lr=0.1, schedule="cosine"), checkpoint=checkpoint)
    return model
"""
KILLED = SCRIPT + "die_after = 15; train(sys.argv[1])"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL, which this system lacks")
def test_a_killed_process_resumes(tmp_path):
    path = tmp_path / "run.pt"
    command = [sys.executable, "-c", KILLED, str(path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(History.from_json(read_checkpoint(path)["history"]).epochs) == 2
    here = {"die_after": None}
    exec(SCRIPT, here)
    assert same(here["train"](path), here["train"](None))
