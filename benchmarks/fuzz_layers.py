"""Random layers through every scheme: how many are pressed wrongly.

Layers and ranks are those of the property tests: every kind of layer with any groups, stride,
padding, dilation and bias, each in four types. At full rank a pressed layer computes what the layer
does; at any rank parameters, multiply-accumulates and error are as predicted and all is finite; a
file that is read and written again has the same bytes. Run by ``make fuzz``, or

    python -m benchmarks.fuzz_layers --out results/fuzz_layers.json
"""

import argparse
import json
import logging
import platform
import sys
import tempfile
import time
import warnings
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "schemes"))

from layer_configs import Case
from test_every_scheme import NAMES, SLOW, draw_ranks, error_of, taken

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure import count_macs, count_params
from tensorpress.schemes.press_layer import press_layer
from tensorpress.schemes.registry import scheme

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
BATCH = 120  # layers that one run of hypothesis draws, fewer of slow schemes
FILE_SHARE = 51  # one layer in so many is written to a file


def mistakes(name: str, case: Case, ranks: tuple[int, ...], dtype: torch.dtype) -> list[str]:
    """Return what is wrong with a layer that a scheme presses at full rank and at these ranks."""
    wrong = []
    layer = deepcopy(case.layer).to(dtype)
    example = case.example.to(dtype) if case.example.is_floating_point() else case.example
    with torch.no_grad():
        expected, full = layer(example), press_layer(layer, name, 1.0)
        if not near(full(example), expected, TOLERANCES[dtype]):
            wrong.append("full rank computes something else")
        pressed = press_layer(layer, name, ranks)
        output = pressed(example)
        if output.shape != expected.shape or output.dtype != dtype:
            wrong.append("output of another shape or type")
        if not all(bool(torch.isfinite(value).all()) for value in pressed.state_dict().values()):
            wrong.append("factors not finite")
        cost = scheme(name).cost(layer, ranks, case.sizes)
        if cost.params != count_params(pressed):
            wrong.append("other parameters than predicted")
        if dtype == torch.float64 and cost.macs != count_macs(pressed, [example]):
            wrong.append("other multiply-accumulates than predicted")
        weight, composed = layer.weight.double(), scheme(name).compose(pressed).double()
        error = float((composed - weight).norm() / weight.norm())
        if abs(error - error_of(pressed)) > max(2e-7, TOLERANCES[dtype] / 2):
            wrong.append(f"error {error:.3g}, said to be {error_of(pressed):.3g}")
    return wrong


def near(output: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether an output is within a tolerance of its norm."""
    difference = (output.double() - expected.double()).norm()
    return bool(difference <= tolerance * expected.double().norm().clamp_min(1e-6))


def file_mistakes(name: str, layer: nn.Module, ranks: tuple[int, ...], folder: Path) -> list[str]:
    """Return what is wrong with files of a pressed layer, each written of the one before."""
    dense = nn.Sequential(layer)
    models = [nn.Sequential(press_layer(layer, name, ranks))]
    paths = [folder / f"{number}.tpz" for number in range(3)]
    for path in paths:
        tp.save(models[-1], path, quantizer=tp.StepQuantizer(-64), norms="float32")
        models.append(tp.load(path, dense))
    states = [model.state_dict() for model in models]
    if any(list(state) != list(states[0]) for state in states):
        return ["a file reads back as other tensors"]
    # The first values are rounded to steps, and in types of few digits these are rounded as well.
    same = paths[1].read_bytes() == paths[2].read_bytes()
    same &= all(torch.equal(states[2][key], states[3][key]) for key in states[0])
    return [] if same else ["a file that is read and written becomes another"]


def fuzz(name: str, number: int, start: int, folder: Path, counts: Counter[str]) -> None:
    """Press ``number`` random layers by a scheme in every type, and count what is wrong."""

    @seed(start)
    @settings(
        max_examples=number, database=None, phases=[Phase.generate], deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        case = data.draw(taken(name))
        for dtype in TOLERANCES:
            ranks = draw_ranks(data, name, case.layer)
            try:
                wrong = mistakes(name, case, ranks, dtype)
                if counts["layers"] % FILE_SHARE == 0:
                    counts["files"] += 1
                    wrong += file_mistakes(name, deepcopy(case.layer).to(dtype), ranks, folder)
            except InvalidArgumentError as error:
                # Terms of CP may grow and cancel, which few digits do not hold: that is refused.
                refused = "the factors cancel" in str(error)
                counts["refused"] += refused
                wrong = [] if refused else [str(error)]
            except Exception as error:
                wrong = [f"{type(error).__name__}: {error}"]
            counts["layers"] += 1
            counts["wrong"] += bool(wrong)
            for text in wrong:
                print(f"{name}, ranks {ranks}, {dtype}, {case!r}: {text}", flush=True)

    check()


def main() -> None:
    """Press random layers by every scheme in turn, and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file, which is continued")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    before = json.loads(options.out.read_text())["schemes"] if options.out.exists() else {}
    counts = {name: Counter[str](before.get(name, {})) for name in NAMES}
    with tempfile.TemporaryDirectory() as folder:
        while sum(c["layers"] for c in counts.values()) < options.layers:
            for place, name in enumerate(NAMES):
                begun = time.process_time()
                number = max(1, BATCH // SLOW.get(name, 1))
                start = options.seed + len(NAMES) * counts[name]["layers"] + place
                fuzz(name, number, start, Path(folder), counts[name])
                counts[name]["processor milliseconds"] += round(1e3 * (time.process_time() - begun))
            content: dict[str, Any] = {
                "layers": sum(c["layers"] for c in counts.values()),
                "wrong": sum(c["wrong"] for c in counts.values()),
                "refused": sum(c["refused"] for c in counts.values()),
                "files": sum(c["files"] for c in counts.values()),
                "seed": options.seed,
                "schemes": {name: dict(counts[name]) for name in NAMES},
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
            }
            options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
