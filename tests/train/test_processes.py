"""The same call in two processes: shared work, one result."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)

SCRIPT = """
import json, os, sys
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from tensorpress.errors import DivergedError
from tensorpress.train import StraightThrough, TrainConfig, evaluate, fit

torch.set_num_threads(1)
folder = sys.argv[1]
generator = torch.Generator().manual_seed(0)
inputs = torch.randn(46, 6, generator=generator)
labels = (inputs[:, 0] > 0).long()
data = TensorDataset(inputs, labels)

def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 2))

torch.manual_seed(3)
found = {}
fixed = network()
found["evaluations"] = [
    evaluate(fixed, batches).__dict__
    for batches in (
        DataLoader(data, 5),
        DataLoader(data, batch_size=None, sampler=BatchSampler(RandomSampler(data), 5, False)),
        list(zip(inputs.split(5), labels.split(5))),
        [(inputs, labels)],
    )
]
config = TrainConfig(epochs=3, lr=0.05, schedule="cosine")
swap = StraightThrough({"0.weight": lambda v: (8 * v).round() / 8})

class Interrupted(Exception):
    pass

class Dying:
    calls = 0
    def __call__(self, model):
        self.calls += 1
        if self.calls == 9:  # in the second epoch, of 5 steps and a validation like the first
            raise Interrupted
        return swap(model)

loaders = {
    "shuffled": lambda: DataLoader(data, 5, shuffle=True),
    "whole": lambda: DataLoader(
        data, batch_size=None, sampler=BatchSampler(RandomSampler(data), 5, False)
    ),
    "list": lambda: list(zip(inputs.split(5), labels.split(5))),
}
found |= {"same": True, "interrupted": 0}
for name, loader in loaders.items():
    path = f"{folder}/{name}.pt"
    whole, broken, resumed = network(), network(), network()
    history = fit(whole, loader(), config, validation=loader(), weights=swap)
    try:
        fit(broken, loader(), config, validation=loader(), weights=Dying(), checkpoint=path)
    except Interrupted:
        found["interrupted"] += 1
    fit(resumed, loader(), config, validation=loader(), weights=swap, checkpoint=path)
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values())
    found["same"] &= all(torch.equal(one, other) for one, other in pairs)
    found[name] = [p.double().sum().item() for p in whole.parameters()]
    found[name] += [m.validation_error for m in history.epochs]
    found[name] += [m.train_loss for m in history.epochs]
bad = [(inputs[:5] * (float("inf") if i == 2 else 1), labels[:5]) for i in range(6)]
try:
    fit(network(), bad, config)
except DivergedError as error:
    found["diverged"] = str(error)
torch.distributed.barrier()
print(json.dumps(found), flush=True)
# A process group that DistributedDataParallel was given outlives destroy_process_group (torch
# 2.13), and a thread of gloo that still drops a tensor while the interpreter ends aborts.
os._exit(0)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("processes")
    running = []
    for rank in range(2):
        environment = {
            **os.environ,
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            **{"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            "ACCELERATE_USE_CPU": "true",
        }
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(folder)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    results = [process.communicate(timeout=120) for process in running]
    for process, (_, errors) in zip(running, results, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in results]


def test_every_example_is_evaluated_once(ranks):
    for found in ranks:
        first, *others = found["evaluations"]
        assert first["examples"] == 46
        for other in others:
            assert other["examples"] == 46
            assert other["error"] == first["error"]
            assert other["loss"] == pytest.approx(first["loss"], rel=1e-6)


@pytest.mark.parametrize("name", ["shuffled", "whole", "list"])
def test_processes_agree_on_weights_and_metrics(ranks, name):
    assert ranks[0][name] == ranks[1][name]


def test_resumed_to_the_same_bits(ranks):
    assert all(found["interrupted"] == 3 and found["same"] for found in ranks)


def test_divergence_in_one_process_stops_all(ranks):
    assert "epoch 1, step 2 of 3" in ranks[0]["diverged"]
    assert ranks[0]["diverged"] == ranks[1]["diverged"]
