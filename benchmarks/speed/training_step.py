"""What training with rebuilt weights costs: a step of the pressed network over a dense step.

Dense, pressed, and the same parametrization with tensorly's rebuilding take turns, so that a
machine whose speed drifts slows all of them alike; medians and their ratios are reported.

    python -m benchmarks.speed.training_step
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from types import MethodType
from typing import Any

import tensorly
import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.models.zoo import network
from tensorpress.press.press import press
from tensorpress.runs.recipe import read_recipe
from tensorpress.runs.recipe_plan import plan_recipe
from tensorpress.schemes.tucker_weight import TuckerWeight
from tensorpress.utils.atomic_files import write_atomically

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "results" / "training_step.json"
CASES = {
    "LeNet-5, ADA-Tucker": ("recipes/mnist/lenet5-ada.yaml", 256),
    "LeNet-5, SCADA-Tucker": ("recipes/mnist/lenet5-scada.yaml", 256),
    "LeNet-300-100, ADA-Tucker": ("recipes/mnist/lenet300100-ada.yaml", 256),
    "ResNet-20, ADA-Tucker (Table 12)": ("recipes/cifar10/resnet20-ada.yaml", 128),
}


def pressed_by(recipe_path: str) -> tuple[nn.Module, nn.Module, tuple[int, int, int]]:
    """Return the dense and the pressed network of a recipe, and the shape of its inputs."""
    recipe = read_recipe(ROOT / recipe_path)
    net = network(recipe.network)
    dense = net.build()
    return dense, press(dense, plan_recipe(dense, recipe), init="kaiming"), net.input_shape


def rebuilt_by_tensorly(model: nn.Module) -> nn.Module:
    """Make every Tucker weight of a model rebuild itself with tensorly, for comparison."""

    def forward(self: TuckerWeight, core: Tensor, *matrices: Tensor) -> Tensor:
        rebuilt = tensorly.tucker_to_tensor((core, list(matrices)))
        return rebuilt.reshape(self._permuted).permute(self._restore)

    for module in model.modules():
        if isinstance(module, TuckerWeight):
            module.forward = MethodType(forward, module)  # type: ignore[method-assign]
    return model


def step_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return a function that takes one optimizer step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return step


def measure(recipe_path: str, batch: int, repeats: int) -> dict[str, Any]:
    """Return median milliseconds a step and the ratios to the dense step."""
    dense, pressed, shape = pressed_by(recipe_path)
    peer = rebuilt_by_tensorly(pressed_by(recipe_path)[1])
    inputs = torch.randn(batch, *shape).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))
    models = {"dense": dense, "pressed": pressed, "tensorly": peer}
    steps = {name: step_of(model, inputs, labels) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 3):
        for name, step in steps.items():
            start = perf_counter()
            step()
            if turn >= 3:
                times[name].append(1000 * (perf_counter() - start))
    result: dict[str, Any] = {f"{name}_ms": median(taken) for name, taken in times.items()}
    for name in ("pressed", "tensorly"):
        ratios = [a / b for a, b in zip(times[name], times["dense"], strict=True)]
        result[f"{name}_over_dense"] = median(ratios)
    return {"batch": batch, "repeats": repeats, **result}


def main() -> None:
    """Measure every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tensorly.set_backend("pytorch")
    results: dict[str, Any] = {
        "versions": {"torch": torch.__version__, "tensorly": tensorly.__version__},
        "device": f"{platform.machine()} CPU, {arguments.threads} threads",
    }
    for name, (recipe_path, batch) in CASES.items():
        results[name] = measure(recipe_path, batch, arguments.repeats)
        print(name, json.dumps(results[name]))
    write_atomically(RESULT, json.dumps(results, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
