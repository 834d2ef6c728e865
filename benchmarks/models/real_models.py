"""Compress trained networks that others made, by `tensorpress.compress` and by plain ways.

Every pair of a network and a way is a row of ``results/real_models.json``. Rows that are there are
not made again; those that failed are. Metrics are on data that nothing was fitted to.

    python -m benchmarks.models.real_models [--only "ResNet-20"]...
"""

import argparse
import io
import json
import platform
import resource
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks.models.real_networks import NETWORKS as SEEN
from benchmarks.models.real_networks import RealNetwork, SkipError
from benchmarks.models.real_networks import run as run_model
from benchmarks.models.unseen_networks import UNSEEN
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.measure import count_macs, count_params, measure_latencies
from tensorpress.utils.atomic_files import write_atomically

RESULTS = Path(__file__).parents[2] / "results" / "real_models.json"
BUDGETS = ("bytes=25%", "params=70%", "macs=70%", "params=50%", "macs=50%", "bytes=12.5%")
PACKAGES = ("tensorpress", "torch", "timm", "transformers")
NETWORKS = {**SEEN, **UNSEEN}
DYNAMIC = {nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell}

Row = dict[str, Any]


def compressed(network: RealNetwork, budget: str) -> tuple[nn.Module, Row]:
    """Return the model of `tensorpress.compress`, and what it says of it."""
    with tempfile.TemporaryDirectory() as folder:
        result = tp.compress(
            network.model,
            budget,
            network.calibration,
            example_inputs=network.inputs,
            out=Path(folder) / "model.tpz" if budget.startswith("bytes") else None,
        )
    fidelity = result.fidelity
    return result.model, {
        "bytes": int(result.costs["bytes"][1]),
        "chosen": result.trial.name,
        "verdict": None if fidelity is None else fidelity.verdict,
        "trials": [trial.to_dict() for trial in result.trials],
        "warnings": list(result.warnings),
        "advice": list(result.advice),
    }


def plain_svd(network: RealNetwork, budget: str) -> tuple[nn.Module, Row]:
    """Return the SVD of every layer at one share of its rank, without data."""
    plan = tp.plan(
        network.model, network.inputs, scheme="channel_svd", allocation="uniform", budget=budget
    )
    return tp.press(network.model, plan), {}


def rounded(network: RealNetwork, bits: int) -> tuple[nn.Module, Row]:
    """Return the model with weights rounded to nearest by channel, and the bytes left by zlib.

    Tensors of one axis stay float32, and scales are float16.
    """
    model = deepcopy(network.model)
    whole: list[bytes] = []
    tensors = [*model.parameters(), *model.buffers()]
    for tensor in (t.detach() for t in tensors):
        if tensor.ndim < 2 or not tensor.is_floating_point():
            whole.append(tensor.numpy().tobytes())
            continue
        largest = 2 ** (bits - 1) - 1
        scale = (
            (tensor.flatten(1).abs().amax(1) / largest).clamp_min(2**-14).half()
        )  # the least normal number
        shaped = scale.float().reshape(-1, *[1] * (tensor.ndim - 1))
        levels = (tensor / shaped).round().clamp(-largest, largest)
        tensor.copy_(levels * shaped)
        whole += [_packed(levels.flatten().to(torch.int8), bits), scale.numpy().tobytes()]
    return model, {"bytes": len(zlib.compress(b"".join(whole), 9))}


def _packed(levels: Tensor, bits: int) -> bytes:
    """Return integers as bytes, two of four bits in one."""
    if bits == 8:
        return levels.numpy().tobytes()
    nibbles = nn.functional.pad(levels + 8, (0, len(levels) % 2)).reshape(-1, 2)
    return (nibbles[:, 0] * 16 + nibbles[:, 1]).to(torch.uint8).numpy().tobytes()


def dynamic(network: RealNetwork) -> tuple[nn.Module, Row]:
    """Return the model with PyTorch's dynamic int8 for linear and recurrent layers."""
    model = torch.ao.quantization.quantize_dynamic(network.model, DYNAMIC, dtype=torch.qint8)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    params = count_params(network.model)
    latency = measure_latencies([model], network.inputs)[0]
    costs = {"params": params, "macs": None, "latency_ms": latency}
    return model, {"bytes": file.tell(), **costs}


Way = Callable[[RealNetwork], tuple[nn.Module, Row]]


def ways(network: RealNetwork) -> dict[str, Way]:
    """Return the ways that apply to a network, by name."""
    result: dict[str, Way] = {"dense": lambda n: (n.model, {})}
    for bits in (8, 4):
        result[f"int{bits}"] = lambda n, bits=bits: rounded(n, bits)
    if any(type(module) in DYNAMIC for module in network.model.modules()):
        result["dynamic int8"] = dynamic
    for budget in ("params=70%", "params=50%"):
        result[f"SVD {budget}"] = lambda n, budget=budget: plain_svd(n, budget)
    for budget in BUDGETS:
        result[budget] = lambda n, budget=budget: compressed(n, budget)
    return result


def row(network: RealNetwork, way: Way) -> Row:
    """Return what a way costs and what it leaves of the metric, or how it failed."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        model, known = way(network)
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        costs: Row = {"metric": network.evaluate(model), "bytes": bytes_of(model), **known}
        if "params" not in known:
            costs["params"] = count_params(model)
            costs["macs"] = count_macs(model, network.inputs)
            costs["latency_ms"] = measure_latencies([model], network.inputs)[0]
    except Exception as error:
        traceback.print_exc()
        costs = {"failed": f"{type(error).__name__}: {error}"}
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    times = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": peak}
    return {**costs, **{name: round(value, 2) for name, value in times.items()}}


@torch.no_grad()
def forward_seconds(network: RealNetwork) -> float:
    """Return the CPU seconds of a pass of the dense model over the calibration data."""
    run_model(network.model, network.calibration[0])  # what a first pass alone does
    began = time.process_time()
    for batch in network.calibration:
        run_model(network.model, batch)
    return time.process_time() - began


@torch.no_grad()
def svd_seconds(network: RealNetwork) -> float:
    """Return the CPU seconds of the SVDs of all weights, each once: what decompositions cost."""
    weights = [p.flatten(1) for p in network.model.parameters() if p.squeeze().ndim > 1]
    began = time.process_time()
    for weight in weights:
        torch.linalg.svd(weight, full_matrices=False)
    return time.process_time() - began


def bytes_of(model: nn.Module) -> int:
    """Return the bytes of parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def run(name: str) -> None:
    """Make the rows of a network that are not there yet."""
    try:
        network = NETWORKS[name]()
    except SkipError as reason:
        print(f"{name} skipped: {reason}")
        return
    entry: Row = {}
    for way, function in ways(network).items():
        if _known(name, way):
            continue
        entry = entry or {
            "metric": network.metric,
            "forward_seconds": round(forward_seconds(network), 2),
            "svd_seconds": round(svd_seconds(network), 2),
        }
        made = row(network, function)
        print(f"{name}, {way}: {made.get('failed') or made['metric']} ({made['seconds']:.0f} s)")
        results = _read()
        rows = results["networks"].get(name, {"rows": {}})["rows"]
        results["networks"][name] = {**entry, "rows": {**rows, way: made}}
        write_atomically(RESULTS, (json.dumps(results, indent=1) + "\n").encode())


def _known(name: str, way: str) -> bool:
    rows = _read()["networks"].get(name, {"rows": {}})["rows"]
    return way in rows and "failed" not in rows[way]


def _read() -> dict[str, Any]:
    if RESULTS.exists():
        return dict(json.loads(RESULTS.read_text()))
    settings = {
        "device": f"{platform.machine()} CPU, one thread, shared with other work",
        "versions": {name: version(name) for name in PACKAGES},
    }
    return {"settings": settings, "networks": {}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=NETWORKS)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for chosen in parser.parse_args().only or NETWORKS:
        run(chosen)
