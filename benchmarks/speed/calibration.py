"""What it costs to run a model for its layers' inputs and responses while they are pressed.

`tensorpress.press` with ``reconstruct="linear"`` runs the dense model once for the responses of
its layers, and the model that is being pressed once more, piece by piece, for their inputs. This
benchmark measures both parts, with layers that are decomposed by their weights instead of fitted:
in multiply-accumulates and processor time, relative to a plain forward pass over the same batches,
and in memory. Every run is a process of its own, with plain passes before and after. Operations are
counted, and memory is looked at, in a process whose time does not count, where the allocator gives
freed memory back at once. ``--before`` measures another checkout, such as one of a commit before
the present one, and stores its numbers beside the present ones.

    python -m benchmarks.speed.calibration
    python -m benchmarks.speed.calibration --before FOLDER COMMIT
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import tensorpress as tp
from tensorpress.models import torchvision_models
from tensorpress.reconstruct import layerwise

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "results" / "calibration.json"
RECIPE: dict[str, Any] = {"scheme": "channel_svd", "ranks": 0.25}
SEED = 0
PARTS = {"responses": ("sample_responses", "responses_of"), "inputs": ("inputs_in_order",)}
"""The functions of `layerwise` that run the model, by the names they have, or had before."""

LLAMA = {
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "use_cache": False,
}


class Logits(nn.Module):
    """A language model that returns its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of tokens."""
        logits: Tensor = self.model(tokens).logits
        return logits


def resnet56() -> tuple[nn.Module, list[Tensor]]:
    """Return ResNet-56 with random weights, and 512 random images of CIFAR's size."""
    before = find_spec("tensorpress.zoo") is not None  # where the zoo was
    zoo = import_module("tensorpress.zoo" if before else "tensorpress.models.zoo")
    return zoo.network("resnet56").build(), [torch.randn(128, 3, 32, 32) for _ in range(4)]


def transformer24() -> tuple[nn.Module, list[Tensor]]:
    """Return a Llama of 24 blocks with random weights, and 32 sequences of 128 tokens."""
    torchvision_models()  # transformers imports torchvision, which may need help to load
    library = import_module("transformers")
    model = Logits(library.LlamaForCausalLM(library.LlamaConfig(**LLAMA)))
    return model, [torch.randint(256, (8, 128)) for _ in range(4)]


CASES: dict[str, Callable[[], tuple[nn.Module, list[Tensor]]]] = {
    "ResNet-56": resnet56,
    "Transformer of 24 blocks": transformer24,
}


class MacCounter(TorchDispatchMode):
    """Counts the multiply-accumulates that are carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        outputs = operation(*arguments, **(keywords or {}))
        count = flop_registry.get(operation.overloadpacket)
        if count is not None:
            self.macs += count(*arguments, **(keywords or {}), out_val=outputs) // 2
        return outputs


class Part:
    """What a part of pressing costs, summed over the pieces it runs in.

    Attributes
    ----------
    seconds : float
        Of the processor.
    macs : int
        Counted where that is asked for, as it takes time.
    most_mb : float
        The most memory that the process has had meanwhile.
    """

    def __init__(self, count: bool) -> None:
        self.seconds, self.macs, self.most_mb = 0.0, 0, 0.0
        self._count = count

    @contextmanager
    def piece(self) -> Iterator[None]:
        """Measure what is done in the block."""
        Path("/proc/self/clear_refs").write_text("5")  # the most so far is what is there now
        counter, start = MacCounter(), process_time()
        if self._count:
            with counter:
                yield
        else:
            yield
        self.seconds += process_time() - start
        self.macs += counter.macs
        self.most_mb = max(self.most_mb, memory_mb("VmHWM"))

    def of_function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is measured, or whose iterator is."""

        def measured(*arguments: Any) -> Any:
            with self.piece():
                result = function(*arguments)
            return self._iterate(result) if isinstance(result, Iterator) else result

        return measured

    def _iterate(self, iterator: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.piece():
                item = next(iterator, None)
            if item is None:
                return
            yield item


def memory_mb(key: str) -> float:
    """Return a figure of this process's memory, in MB; of Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def unfitted(kernels: Any, dense: Tensor, data: Any, *_: Any, **__: Any) -> Any:
    """Return the kernels of a layer as they are, in place of fitting them."""
    return layerwise.ActivatedFit(list(kernels), torch.zeros_like(data.scale, dtype=torch.float64))


def plain_pass(model: nn.Module, batches: list[Tensor], count: bool = False) -> Part:
    """Return what a forward pass over all batches costs."""
    part = Part(count)
    with torch.no_grad(), part.piece():
        for batch in batches:
            model(batch)
    return part


def work(case: str, count: bool) -> None:
    """Press a model in this process, and print what it took."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model, batches = CASES[case]()
    model.eval()
    plan = tp.plan(model, batches[0], **RECIPE)
    plain_pass(model, batches[:1])  # so that all libraries are warm
    before = plain_pass(model, batches, count)
    parts = {name: Part(count) for name in PARTS}
    for name, functions in PARTS.items():
        function = next(x for x in functions if hasattr(layerwise, x))
        setattr(layerwise, function, parts[name].of_function(getattr(layerwise, function)))
    setattr(layerwise, "fit_layer", unfitted)  # noqa: B010
    memory = memory_mb("VmRSS")
    tp.press(model, plan, calibration=batches, reconstruct="linear")
    once = (before.seconds + plain_pass(model, batches).seconds) / 2
    result = {"layers": len(plan.layers)} if count else {"pass_seconds": once}
    for name, part in parts.items():
        if count:
            result[f"{name}_macs"] = part.macs / before.macs
            result[f"{name}_mb"] = part.most_mb - memory
        else:
            result[f"{name}_passes"] = part.seconds / once
    print(json.dumps(result))


def measure(case: str, source: Path, repeats: int) -> dict[str, float]:
    """Return medians over several processes that import the package from a folder."""
    path = os.pathsep.join(filter(None, (str(source), str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}

    def run(*options: str, **more: str) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.speed.calibration", "--worker", case, *options]
        output = subprocess.run(
            command, env=environment | more, cwd=ROOT, check=True, capture_output=True
        )
        result: dict[str, float] = json.loads(output.stdout.splitlines()[-1])
        return result

    runs = [run() for _ in range(repeats)]
    counted = run("--count", MALLOC_MMAP_THRESHOLD_="65536")
    result = {key: median(one[key] for one in runs) for key in runs[0]} | counted
    return {key: round(value, 3) for key, value in result.items()}


def main() -> None:
    """Measure every case, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", nargs=2, metavar=("FOLDER", "COMMIT"))
    parser.add_argument("--worker", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.count)
        return
    folder, commit = arguments.before or (ROOT, None)
    cases = {case: measure(case, Path(folder) / "src", arguments.repeats) for case in CASES}
    state: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    state |= {
        "recipe": {**RECIPE, "reconstruct": "linear"},
        "seed": SEED,
        "repeats": arguments.repeats,
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores, 1 thread",
        "versions": {"torch": torch.__version__, "tensorpress": tp.__version__},
    }
    if commit is None:
        state["now"] = {"cases": cases}
    else:
        state["before"] = {"commit": commit, "cases": cases}
    RESULT.write_text(json.dumps(state, indent=1) + "\n")
    print(json.dumps(cases, indent=1))


def calibration_table() -> str:
    """Return the costs before and now, as a table of Markdown."""
    state = json.loads(RESULT.read_text())
    rows = [
        "| network | | dense pass: MACs, time | pressed pass: MACs, time | both: MACs, time "
        "| memory MB |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for case in CASES:
        for label, part in (("before", state["before"]), ("now", state["now"])):
            cost = part["cases"][case]
            each = [[cost[f"{name}_{unit}"] for unit in ("macs", "passes")] for name in PARTS]
            each.append([sum(values) for values in zip(*each, strict=True)])
            cells = [", ".join(f"{value:.2f}" for value in values) for values in each]
            memory = max(cost[f"{name}_mb"] for name in PARTS)
            rows.append(f"| {case} | {label} | {' | '.join(cells)} | {memory:,.0f} |")
    commit = state["before"]["commit"]
    device = f"{state['device']}, torch {state['versions']['torch']}"
    return "\n".join([*rows, "", f"Before: commit {commit}. {device}."])


if __name__ == "__main__":
    main()
