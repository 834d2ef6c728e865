"""Small models of transformers with random weights, pressed, and their outputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorpress.models.torchvision import mend_torchvision
from tensorpress.planning import plan
from tensorpress.press.press import press


def transformers() -> Any:
    mend_torchvision()  # transformers imports torchvision where it is installed
    return pytest.importorskip("transformers", minversion="4.57")


SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def decoder(family: str, **options: Any) -> nn.Module:
    library = transformers()
    torch.manual_seed(0)
    config = getattr(library, f"{family}Config")(**SIZES, **options)
    return getattr(library, f"{family}ForCausalLM")(config).eval()


def llama(**options: Any) -> nn.Module:
    return decoder("Llama", **options)


def gpt2() -> nn.Module:
    library = transformers()
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = library.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)
    return library.GPT2LMHeadModel(config).eval()


def bert() -> nn.Module:
    library = transformers()
    torch.manual_seed(0)
    sizes = {key: SIZES[key] for key in SIZES if key != "num_key_value_heads"}
    return library.BertForMaskedLM(library.BertConfig(**sizes)).eval()


def t5() -> nn.Module:
    library = transformers()
    torch.manual_seed(0)
    config = library.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0
    )
    config.decoder_start_token_id = 0
    return library.T5ForConditionalGeneration(config).eval()


def whisper() -> nn.Module:
    library = transformers()
    torch.manual_seed(0)
    config = library.WhisperConfig(
        vocab_size=96,
        num_mel_bins=8,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=16,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return library.WhisperForConditionalGeneration(config).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "tied llama": lambda: llama(tie_word_embeddings=True),
    "qwen2": lambda: decoder("Qwen2"),
    "tied qwen3": lambda: decoder("Qwen3", head_dim=8, tie_word_embeddings=True),
    "gpt2": gpt2,
    "bert": bert,
    "t5": t5,
    "whisper": whisper,
}

DENSE = ["re:.*(emb|wpe|wte|shared|lm_head|proj_out|decoder$).*"]
"""Embeddings and heads, which many models tie."""


def pressed(model: nn.Module, scheme: str = "channel_svd") -> nn.Module:
    """Press all linear layers but the head."""
    return press(model, plan(model, scheme=scheme, ranks=3, skip=DENSE))


def save_tokenizer(folder: Path) -> Any:
    """Save a tokenizer of single characters, and return it."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, **{chr(32 + i): i + 1 for i in range(95)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer = transformers().PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    return tokenizer


def outputs(model: nn.Module) -> Tensor:
    tokens = torch.arange(3, 15).reshape(2, 6)
    inputs = {"input_ids": tokens}
    if model.config.model_type == "t5":
        inputs["decoder_input_ids"] = tokens
    if model.config.model_type == "whisper":
        features = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))
        inputs = {"input_features": features, "decoder_input_ids": tokens}
    with torch.no_grad():
        return model(**inputs).logits
