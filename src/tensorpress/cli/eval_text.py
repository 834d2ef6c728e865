"""Measurement of language models on a text, for the command eval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tensorpress.cli.output import print_json, print_table
from tensorpress.errors import DataNotFoundError, InvalidArgumentError
from tensorpress.report import formatting
from tensorpress.report.tables import plain_table
from tensorpress.utils.paths import read_text_file

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from tensorpress.cli.model_source import LoadedModel

PROMPT = 512
"""Number of tokens in the timed prompt, if the model allows as many."""

WRITTEN = 32
"""Number of tokens to write, or half the context of the model if that is less."""

ARRAYS = (".npz", ".safetensors")
"""Suffixes of files with token arrays."""

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class TextOptions:
    """Options for a text.

    Attributes
    ----------
    window : int or None
        Number of tokens per window.
    windows : int or None
        Number of windows.
    dtype : str
        The dtype of the model; "auto" keeps the stored one.
    device : str
        The device.
    """

    window: int | None = None
    windows: int | None = None
    dtype: DType = "auto"
    device: str = "cpu"


def eval_text(loaded: LoadedModel, file: Path, options: TextOptions, as_json: bool) -> None:
    """Print the perplexity of a language model on a text, its speed and memory."""
    metrics = measure_text(loaded, file, options)
    if as_json:
        print_json(metrics)
    else:
        print_table(_text_table(metrics))


def measure_text(loaded: LoadedModel, file: Path, options: TextOptions) -> dict[str, Any]:
    """Return the perplexity of a language model on a text, its speed and memory."""
    import torch

    from tensorpress.measure import count_bytes, count_params
    from tensorpress.measure.generation_speed import measure_generation
    from tensorpress.measure.memory import peak_memory
    from tensorpress.measure.perplexity import longest_context, perplexity

    model: Any = loaded.model
    tokens, row = read_tokens(loaded, file)
    dtype = None if options.dtype == "auto" else getattr(torch, options.dtype)
    try:
        model = model.to(device=torch.device(options.device), dtype=dtype)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or no such device
        raise InvalidArgumentError(f"--device {options.device}: {error}") from error
    result = perplexity(model, tokens, window=options.window or row, windows=options.windows)
    context = longest_context(model)
    written = min(WRITTEN, context // 2)
    speed = measure_generation(model, tokens[: min(PROMPT, context - written)], written=written)
    return {
        "model": loaded.label,
        "data": str(file),
        "dtype": str(model.dtype).removeprefix("torch."),
        "params": count_params(model),
        "bytes": count_bytes(model),
        "perplexity": result.perplexity,
        "nll": result.nll,
        "tokens": result.tokens,
        "windows": result.windows,
        "window": result.window,
        "token_hash": result.token_hash,
        "prompt": speed.prompt,
        "prefill_tokens_per_s": speed.prefill,
        "decode_tokens_per_s": speed.decode,
        "peak_memory_bytes": peak_memory(torch.device(options.device)),
    }


def read_tokens(loaded: LoadedModel, file: Path) -> tuple[Tensor, int | None]:
    """Return all tokens of a text or of rows ``input_ids``, and the length of a row.

    Texts are tokenized as a whole, without special tokens.

    Raises
    ------
    InvalidArgumentError
        If the model is not a causal language model of Transformers, or rows are padded.
    DataNotFoundError
        If it has no tokenizer, or the text cannot be read.
    """
    import torch

    from tensorpress.data.arrays import read_token_rows
    from tensorpress.models import parse_name
    from tensorpress.models.hugging_face import transformers_library

    name = parse_name(loaded.name or "")
    config: Any = getattr(loaded.model, "config", None)
    generates: Any = getattr(loaded.model, "can_generate", lambda: False)
    if name.origin != "hf" or not generates() or config.is_encoder_decoder:
        raise InvalidArgumentError(
            f"perplexity on a text needs a causal language model of Transformers, got "
            f"{loaded.label}"
        )
    if file.suffix.lower() in ARRAYS:
        rows = read_token_rows(file)
        return rows.flatten(), rows.shape[1]
    text = read_text_file(file)
    try:
        tokenizer = transformers_library().AutoTokenizer.from_pretrained(name.name)
    except Exception as error:  # of several libraries
        raise DataNotFoundError(f"the tokenizer of {name.name} cannot be read: {error}") from None
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(tokens, dtype=torch.int64), None


def _text_table(metrics: dict[str, Any]) -> Table:
    memory = metrics["peak_memory_bytes"]
    rows = {
        metrics["model"]: f"{metrics['params']:,} parameters, {metrics['bytes']:,} bytes",
        "perplexity": f"{metrics['perplexity']:.2f}",
        "of": f"{metrics['tokens']:,} tokens of {metrics['data']}",
        "in": f"{metrics['windows']:,} windows of {metrics['window']:,}, in {metrics['dtype']}",
        "hash of all tokens": metrics["token_hash"],
        "prefill": f"{metrics['prefill_tokens_per_s']:,.0f} tokens/s, of {metrics['prompt']}",
        "decode": f"{metrics['decode_tokens_per_s']:,.1f} tokens/s",
        "peak memory": "–" if memory is None else " ".join(formatting.size(memory)),
    }
    table = plain_table()
    table.show_header = False
    for label, value in rows.items():
        table.add_row(label, value)
    return table
