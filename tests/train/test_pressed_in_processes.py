"""A pressed model on two processes, by torchrun: the same weights as on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tensorpress.callbacks.pressing import Pressing
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning import plan
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.press.press import press
from tensorpress.train import finetune

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)

FORMS = {
    "layers": {"scheme": "channel_svd", "ranks": 0.5},
    "weights": {"scheme": "tt_weight", "ranks": 3},
    "shared core": {
        "scheme": "scada_tucker",
        "overrides": {"*": {"modes": (4, 4, 4, 4), "ranks": (3, 3, 3, 3)}},
        "skip": ["4"],
    },
}
STEPS, BATCH, RATE = 6, 8, 1e-2


def pressed(form: str) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    )
    return press(net, plan(net, **FORMS[form]))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, BATCH, 16, generator=generator)
    return x, torch.randint(4, (STEPS, BATCH), generator=generator)


def by_finetune(form: str) -> dict[str, torch.Tensor]:
    """Train on the whole batches; on several processes each batch is cut into pieces for them."""
    size = BATCH // int(os.environ.get("WORLD_SIZE", "1"))
    x, labels = (part.flatten(0, 1).split(size) for part in data())
    model = pressed(form)
    batches = list(zip(x, labels, strict=True))
    history = finetune(model, batches, epochs=1, lr=RATE, validation=batches, optimizer="adamw")
    assert history.epochs[0].validation_loss is not None
    return {**model.state_dict(), "loss": torch.tensor(history.epochs[0].validation_loss)}


def by_accelerate(form: str) -> dict[str, torch.Tensor]:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    accelerator = Accelerator(cpu=True)
    model = pressed(form)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    loader = DataLoader(
        TensorDataset(*(part.flatten(0, 1) for part in data())), BATCH // accelerator.num_processes
    )
    trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for inputs, labels in loader:
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(trained(inputs), labels))
        optimizer.step()
    return model.state_dict()


def by_fully_shard(form: str) -> dict[str, torch.Tensor]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    rank, mesh = torch.distributed.get_rank(), init_device_mesh("cpu", (2,))
    model = pressed(form)
    if form != "shared core":
        for layer in plan_from_model(model).layers:
            fully_shard(model.get_submodule(layer.name), mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert plan_from_model(model) == plan_from_model(pressed(form))
    with pytest.raises(InvalidArgumentError, match="is a DTensor, but finetune"):
        finetune(model, [(torch.zeros(1, 16), torch.zeros(1))] * 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for inputs, labels in zip(*data(), strict=True):
        part = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[part]), labels[part]).backward()
        optimizer.step()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


WAYS = {"finetune": by_finetune, "accelerate": by_accelerate, "fully_shard": by_fully_shard}


def run(folder: str) -> None:
    """Train in every way, as one of several processes; the first one writes the weights."""
    torch.set_num_threads(1)
    for way, train in WAYS.items():
        for form in FORMS:
            state = train(form)
            if torch.distributed.get_rank() == 0:
                torch.save(state, Path(folder, f"{way} {form}.pt"))
    dense = nn.Sequential(nn.Linear(40, 40))
    later = Pressing(plan(dense, scheme="channel_svd", ranks=4), step=1, epoch=None)
    with pytest.raises(InvalidArgumentError, match=r"with several processes .* before training"):
        later.check_processes(dense)
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads may abort an interpreter that ends


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("two")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [sys.executable, *launch, __file__, str(place)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return place


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_reach_the_weights_of_one(folder: Path, way: str, form: str) -> None:
    state, alone = torch.load(folder / f"{way} {form}.pt"), by_finetune(form)
    start = pressed(form).state_dict()
    assert state.keys() - {"loss"} == start.keys()
    for name, values in state.items():
        torch.testing.assert_close(values, alone[name], rtol=1e-5, atol=1e-5)
    assert any((alone[name] - start[name]).abs().max() > 1e-2 for name in start)


if __name__ == "__main__":
    run(sys.argv[1])
