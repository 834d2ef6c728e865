"""Perplexity of a character-level Transformer without fine-tuning, by what its factors fit.

A Llama of 2.7 million parameters is trained on tinyshakespeare, then its Linears are decomposed:
by their weights, in the norm of their inputs, and by responses; and with calibration data that are
too few. The training goes on where it was stopped, and rows are kept in the journal.

    python -m benchmarks.accuracy.characters --data DIRECTORY --journal FOLDER
"""

import argparse
import json
import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from math import cos, exp, pi
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tensorpress as tp
from tensorpress.models import torchvision_models
from tensorpress.planning.plan import Plan
from tensorpress.reconstruct.layerwise import Reconstruct
from tensorpress.sensitivity.response_energy import response_energies
from tensorpress.utils.atomic_files import write_atomically

RESULT = Path(__file__).parents[2] / "results" / "characters.json"
CONTEXT, BATCH, RATE, WARMUP = 128, 32, 2e-3, 100
CALIBRATION = 256  # sequences
REMOVED = (20, 40, 60)
BLOCKS = ("model.layers.*",)
WAYS: tuple[tuple[Reconstruct | None, str], ...] = (
    (None, "uniform"),
    (None, "error"),
    ("inputs", "uniform"),
    ("inputs", "response energy"),
    ("linear", "uniform"),
    ("linear", "response energy"),
)


@dataclass
class Text:
    """Tokens for training and for the test."""

    train: Tensor
    test: Tensor
    vocabulary: int

    @staticmethod
    def of(path: Path) -> "Text":
        """Read a text; its last twentieth is the test."""
        characters = path.read_text()
        known = {character: place for place, character in enumerate(sorted(set(characters)))}
        tokens = torch.tensor([known[character] for character in characters])
        split = len(tokens) * 19 // 20
        return Text(tokens[:split], tokens[split:], len(known))

    def drawn(self, count: int, seed: int) -> Tensor:
        """Return sequences of the training part, (count, CONTEXT + 1)."""
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(self.train) - CONTEXT, (count, 1), generator=generator)
        return self.train[starts + torch.arange(CONTEXT + 1)]


def transformer(vocabulary: int) -> nn.Module:
    """Return the network, freshly initialized."""
    torchvision_models()  # transformers imports torchvision, which may need help to load
    library = import_module("transformers")
    return library.LlamaForCausalLM(
        library.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            max_position_embeddings=CONTEXT,
            use_cache=False,
        )
    )


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next characters of sequences."""
    logits = model(tokens[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def trained(text: Text, folder: Path, steps: int) -> nn.Module:
    """Train in bf16, or go on with it; the learning rate follows a cosine."""
    torch.manual_seed(0)
    model = transformer(text.vocabulary)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    path, first = folder / "training.pt", 0
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARMUP, 0.5 + 0.5 * cos(pi * step / steps))
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, text.drawn(BATCH, seed=step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {steps}: loss {loss.item():.4f}", flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step + 1}, path)
    return model.eval()


@torch.no_grad()
def perplexity(model: nn.Module, tokens: Tensor) -> float:
    """Return exp of the mean cross-entropy over sequences that do not overlap."""
    count = (len(tokens) - 1) // CONTEXT
    places = torch.arange(count)[:, None] * CONTEXT + torch.arange(CONTEXT + 1)
    losses = [loss_of(model, part) * len(part) for part in tokens[places].split(64)]
    return exp(float(torch.stack(losses).sum()) / count)


class Warnings(logging.Handler):
    """Counts the warnings of a press."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what was said."""
        self.messages.append(record.getMessage())


def pressed_row(
    dense: nn.Module, text: Text, plan: Plan, batches: list[Tensor], kind: Reconstruct | None
) -> dict[str, Any]:
    """Press and test."""
    warnings, logger = Warnings(), logging.getLogger("tensorpress.press")
    logger.addHandler(warnings)
    start = process_time()
    given = {} if kind is None else {"calibration": batches, "reconstruct": kind}
    model = tp.press(dense, plan, **given)
    seconds = process_time() - start
    logger.removeHandler(warnings)
    return {
        "params": plan.params,
        "perplexity": perplexity(model, text.test),
        "seconds": seconds,
        "warnings": len(warnings.messages),
        "warning": next(iter(warnings.messages), None),
    }


def planned(dense: nn.Module, batches: list[Tensor], removed: int, allocation: Any) -> Plan:
    """Return a plan for channel SVD of the blocks' Linears."""
    budget = f"params={100 - removed}%"
    return tp.plan(
        dense,
        batches[0][:1],
        scheme="channel_svd",
        targets=BLOCKS,
        budget=budget,
        allocation=allocation,
    )


def jobs(dense: nn.Module, text: Text) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what is measured, by the name of a row."""
    batches = list(text.drawn(CALIBRATION, seed=-1)[:, :-1].split(32))
    scores = response_energies(dense, batches, targets=BLOCKS)
    few = {
        "one sequence": [batches[0][:1]],
        "eight sequences": [batches[0][:8]],
        "one character": [torch.zeros_like(batches[0])],
    }
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for removed in REMOVED:
        for kind, rule in WAYS:
            plan = planned(dense, batches, removed, scores if rule == "response energy" else rule)
            about = {"removed": removed, "kind": kind or "weights", "ranks": rule}
            found[f"{removed}-{kind}-{rule}"] = lambda p=plan, k=kind, a=about: (
                a | pressed_row(dense, text, p, batches, k)
            )
    plan = planned(dense, batches, 40, "uniform")
    for data, given in few.items():
        for kind in ("inputs", "linear"):
            about = {"removed": 40, "kind": kind, "ranks": "uniform", "calibration": data}
            found[f"few-{data}-{kind}"] = lambda g=given, k=kind, a=about: (
                a | pressed_row(dense, text, plan, g, k)
            )
    return found


def main() -> None:
    """Train, measure what the journal does not hold yet, and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    given = parser.parse_args()
    given.journal.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    text = Text.of(given.data / "text" / "tinyshakespeare.txt")
    dense = trained(text, given.journal, given.steps)
    rows = []
    for name, job in jobs(dense, text).items():
        path = given.journal / f"{name}.json"
        if not path.exists():
            write_atomically(path, json.dumps(job()).encode())
        rows.append(json.loads(path.read_text()))
        print(rows[-1], flush=True)
    result = {
        "params": sum(p.numel() for p in dense.parameters()),
        "steps": given.steps,
        "calibration": {"sequences": CALIBRATION, "context": CONTEXT},
        "dense": {
            "train": perplexity(dense, text.train[: len(text.test)]),
            "test": perplexity(dense, text.test),
        },
        "rows": rows,
        "setup": {
            "torch": torch.__version__,
            "tensorpress": tp.__version__,
            "machine": f"{platform.machine()}, one thread, busy with other work",
        },
    }
    write_atomically(RESULT, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    main()
