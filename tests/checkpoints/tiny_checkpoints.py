"""Small models of transformers, and their checkpoints in shards."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tensorpress.checkpoints import press_checkpoint
from tensorpress.models.torchvision import mend_torchvision


def transformers():
    mend_torchvision()  # transformers imports torchvision where it is installed
    return pytest.importorskip("transformers")


def llama(*, tied: bool = False) -> nn.Module:
    """Grouped-query attention: two key and value heads for four of queries."""
    library = transformers()
    torch.manual_seed(0)
    config = library.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        attention_bias=True,
    )
    return library.LlamaForCausalLM(config).eval()


def gpt2() -> nn.Module:
    """Tied embeddings, and layers that hold their weights transposed."""
    library = transformers()
    torch.manual_seed(0)
    config = library.GPT2Config(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    return library.GPT2LMHeadModel(config).eval()


def bert() -> nn.Module:
    library = transformers()
    torch.manual_seed(0)
    config = library.BertConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    return library.BertForMaskedLM(config).eval()


MODELS = {"llama": llama, "tied llama": lambda: llama(tied=True), "gpt2": gpt2, "bert": bert}


def save_sharded(model: nn.Module, folder: Path) -> Path:
    """Save as transformers does, with shards so small that there are several."""
    model.save_pretrained(folder, max_shard_size="12KB")
    assert len(list(folder.glob("*.safetensors"))) >= 3
    return folder


def logits(model: nn.Module) -> torch.Tensor:
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        return model(tokens).logits


def contents(folder: Path) -> dict[str, bytes]:
    """What is in a folder, but for the record of how it came there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".press" not in path.parts
    }


def interrupt_after_shards(source: Path, out: Path, **options: Any) -> None:
    """Press a checkpoint, and stop when all shards are written but no other file."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules["tensorpress.checkpoints.press_checkpoint"]
        patch.setattr(module, "copy_others", stop)
        with pytest.raises(KeyboardInterrupt):
            press_checkpoint(source, out, **options)
