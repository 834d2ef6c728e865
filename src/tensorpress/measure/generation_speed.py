"""Speed of language models: reading a prompt, and writing token by token."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from tensorpress.measure.cost import evaluation_mode
from tensorpress.measure.latency import synchronize


@dataclass(frozen=True)
class GenerationSpeed:
    """Tokens per second of a language model for one sequence.

    Attributes
    ----------
    prefill, decode : float
        Median tokens per second when reading the prompt and when writing token by token.
    prompt, written : int
        Number of tokens in the prompt, and of tokens written.
    """

    prefill: float
    decode: float
    prompt: int
    written: int


def measure_generation(
    model: nn.Module,
    prompt: Tensor,
    *,
    written: int = 32,
    repeats: int = 3,
    clock: Callable[[], float] = perf_counter,
) -> GenerationSpeed:
    """Measure how fast a causal language model of Transformers reads a prompt and writes.

    Parameters
    ----------
    model : nn.Module
        The model, which runs in eval mode with a cache of keys and values.
    prompt : Tensor
        The tokens of the prompt, of shape (length,).
    written : int
        Number of tokens to write, each the most probable one.
    repeats : int
        Number of timed rounds, after a warm-up round.
    clock : callable
        Function that returns the time in seconds.
    """
    device = next(model.parameters()).device
    reading: list[float] = []
    writing: list[float] = []
    with evaluation_mode(model), torch.inference_mode():
        for turn in range(-1, repeats):
            tokens, cache = prompt[None].to(device), None
            for step in range(written + 1):
                synchronize(device)
                start = clock()
                output = model(input_ids=tokens, past_key_values=cache, use_cache=True)
                tokens, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
                synchronize(device)
                if turn >= 0:
                    (writing if step else reading).append(clock() - start)
    return GenerationSpeed(len(prompt) / median(reading), 1 / median(writing), len(prompt), written)
