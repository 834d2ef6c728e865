"""Kills at random moments: how many leave something behind, or change what comes out.

A recipe, a sweep, a folder that is pressed, one that is pressed block by block, a model that is
encoded, one that is compressed, folders that are encoded and decoded, and pages are started, killed
and started again until they end. Moments are drawn over the time the work takes, a quarter of them
over its end, where files are renamed.
Run by ``make fuzz``, or

    python -m benchmarks.fuzz_kills --out results/fuzz_kills.json

Work runs in forks of a process that has imported everything, so that a kill costs no start.
"""

import argparse
import json
import logging
import os
import platform
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "checkpoints"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "integration"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "sweep"))

from tiny_checkpoints import llama, save_sharded
from tiny_runs import recipe
from tiny_sweeps import sweep_text

import tensorpress as tp
from tensorpress.checkpoints.encode_checkpoint import JOBS
from tensorpress.checkpoints.encoded_files import ENCODED
from tensorpress.models.zoo import build
from tensorpress.runs.run import run
from tensorpress.sweep import read_sweep, sweep

SERIES = 3  # kills of one piece of work until it is left alone
TIMES = ("seconds", "latency", "date", "environment", "started")
"""What differs from run to run in the JSON files of runs and sweeps."""


def do_encode(out: Path) -> None:
    """Encode a model at a size."""
    torch.manual_seed(0)
    tp.encode(build("lenet300100"), out / "a.tpz", size=20_000)


def do_compress(out: Path) -> None:
    """Compress a model to a file of a size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10))
    tp.compress(model, "bytes=40%", [torch.randn(16, 40) for _ in range(6)], out=out / "a.tpz")


def do_run(out: Path) -> None:
    """Carry out a recipe of three phases of training."""
    run(recipe(), out / "run", seed=3)


class Here(Executor):
    """Runs everything in this process, at once."""

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        """Return the future of a function that has been called."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


def do_sweep(out: Path) -> None:
    """Run two variants of a recipe."""
    path = out / "s.yaml"
    path.write_text(sweep_text())
    sweep(*read_sweep(path), out / "sweep", seeds=(0,), executor=Here())


def do_press(source: Path, out: Path) -> None:
    """Press a folder shard by shard."""
    tp.press_checkpoint(source, out / "pressed", scheme="channel_svd", ranks=0.5)


def do_press_streamed(source: Path, out: Path) -> None:
    """Press a folder block by block on calibration data."""
    chance = torch.Generator().manual_seed(0)
    tokens = [torch.randint(0, 96, (4, 24), generator=chance) for _ in range(2)]
    tp.press_checkpoint(source, out / "pressed", budget="params=80%", calibration=tokens)


def do_encode_folder(source: Path, out: Path) -> None:
    """Encode a folder tensor by tensor; a finished one is refused."""
    if not (out / "coded" / ENCODED).exists() or (out / "coded" / JOBS).exists():
        tp.encode_checkpoint(source, out / "coded", bits=6)


def do_decode_folder(source: Path, out: Path) -> None:
    """Decode an encoded folder, which is there complete or not at all."""
    if not (out / "dense").exists():
        tp.decode_checkpoint(source, out / "dense")


def do_report(out: Path) -> None:
    """Press two models, save one as a folder, and write the pages of one and of both."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10))
    inputs = torch.randn(9, 40)
    plans = {f"rank {n}": tp.plan(model, scheme="channel_svd", ranks=n) for n in (2, 4)}
    pressed = {name: tp.press(model, plan) for name, plan in plans.items()}
    if not (out / "pressed").exists():
        tp.save_checkpoint(pressed["rank 4"], out / "pressed")
    tp.report(model, pressed["rank 4"], out / "report.html", batches=[inputs])
    tp.compare(model, pressed, batches=[inputs], path=out / "comparison.html")


def start(work: Callable[[Path], None], out: Path) -> int:
    """Return the process of a piece of work that is done in a fork."""
    out.mkdir(exist_ok=True)
    process = os.fork()
    if process:
        return process
    try:
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        work(out)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


def end(process: int, delay: float) -> int:
    """Kill a process after a delay, unless it ends before, and return how it ended."""
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def contents(folder: Path) -> dict[str, Any]:
    """Return the files of a folder; of JSON and pages, what does not depend on the clock."""
    result: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        content: Any = path.read_bytes() if path.is_file() else "folder"
        if path.name in ("metrics.json", "sweep.json") or ".press" in path.parts:
            content = timeless(json.loads(content)) if path.suffix == ".json" else "there"
        elif path.suffix in (".html", ".pt"):
            content = "there"
        result[str(path.relative_to(folder))] = content
    return result


def timeless(value: Any) -> Any:
    """Return JSON data without what a clock or a machine said."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not any(t in k for t in TIMES)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def kill(
    name: str, work: Callable[[Path], None], number: int, folder: Path, chance: random.Random
) -> Counter[str]:
    """Kill a piece of work so many times, compare what comes out, and return the counts."""
    counts: Counter[str] = Counter()
    begun = time.monotonic()
    if end(start(work, folder / "whole"), float("inf")):
        raise SystemExit((folder / "whole.log").read_text())
    duration = time.monotonic() - begun
    expected = contents(folder / "whole")
    while counts["kills"] < number:
        out = folder / f"{counts['series']}"
        for _ in range(SERIES):
            late = chance.random() < 0.25
            delay = chance.uniform(0.85 if late else 0, 1.02) * duration
            begun = time.monotonic()
            code = end(start(work, out), delay)
            if code == 0:
                duration = time.monotonic() - begun  # the machine may have other work meanwhile
            counts["kills"] += code == -signal.SIGKILL
        if end(start(work, out), float("inf")):
            counts["failed"] += 1
            print(f"{name}: {out.with_suffix('.log').read_text()[-2000:]}", flush=True)
        result = contents(out)
        left = sorted(result.keys() - expected.keys())
        different = [key for key in expected if result.get(key) != expected[key]]
        counts["leftovers"] += bool(left)
        counts["different"] += bool(different)
        if left or different:
            print(f"{name}: left {left}, different {different}", flush=True)
        counts["series"] += 1
    return counts


def main() -> None:
    """Kill every kind of work, and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="one kind of work; other counts of the file stay")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    chance, counts = random.Random(options.seed), {}
    if options.only and options.out.exists():
        before = json.loads(options.out.read_text())["works"]
        counts = {name: Counter[str](work) for name, work in before.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = save_sharded(llama(), folder / "dense")
        coded = folder / "coded"
        tp.encode_checkpoint(source, coded, lossless=True)
        works = {
            "encode": do_encode,
            "compress": do_compress,
            "run": do_run,
            "sweep": do_sweep,
            "press": partial(do_press, source),
            "press, streamed": partial(do_press_streamed, source),
            "encode folder": partial(do_encode_folder, source),
            "decode folder": partial(do_decode_folder, coded),
            "report": do_report,
        }
        for name, work in works.items():
            if options.only in (None, name):
                place = folder / name
                (place / "warm").mkdir(parents=True)
                work(place / "warm")  # imports and compiles what forks then have
                number = -(-options.kills // len(works))
                counts[name] = kill(name, work, number, place, chance)
    total = sum(counts.values(), Counter())
    content = {
        **{key: total[key] for key in ("kills", "series", "failed", "different", "leftovers")},
        "seed": options.seed,
        "works": {name: dict(c) for name, c in counts.items()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
