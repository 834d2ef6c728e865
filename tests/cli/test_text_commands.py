"""Language models on the command line: eval on a text, export as dense and as an adapter."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tensorpress as tp
from command_line import Outcome
from tensorpress.models.torchvision import mend_torchvision

RunJson = Callable[..., Any]
Fails = Callable[..., str]
Shell = Callable[..., Outcome]

TEXT = "the quick brown fox jumps over the lazy dog " * 30


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A folder of a small language model, with a tokenizer of characters that adds an ending."""
    mend_torchvision()
    library = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    config = library.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
    )
    model = library.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "dense", max_shard_size="12KB")
    vocabulary = {"[UNK]": 0, "[END]": 1, **{chr(32 + i): i + 2 for i in range(94)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A [END]", special_tokens=[("[END]", 1)]
    )
    tokenizer = library.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "dense"


@pytest.fixture
def pressed(dense: Path, shell: Shell) -> Path:
    folder = dense.with_name("pressed")
    outcome = shell(
        *("press", dense, "--out", folder, "--scheme", "channel_svd", "--ranks", "3"),
        *("--targets", "*_proj"),
    )
    assert outcome.code == 0, outcome.err
    return folder


def test_perplexity_of_a_dense_and_of_a_pressed_folder(run_json: RunJson, pressed: Path) -> None:
    library = pytest.importorskip("transformers")
    dense = pressed.with_name("dense")
    tokens = torch.tensor([ord(letter) - 30 for letter in TEXT])
    hashes = set()
    for folder in (dense, pressed):
        metrics = run_json("eval", folder, "--data", "text.txt", "--window", 100)
        model = library.AutoModelForCausalLM.from_pretrained(folder)
        expected = tp.perplexity(model, tokens, window=100)
        assert math.isclose(metrics["perplexity"], expected.perplexity, rel_tol=1e-6)
        assert (metrics["windows"], metrics["tokens"]) == (13, 13 * 99)
        assert metrics["params"] == sum(p.numel() for p in model.parameters())
        assert metrics["prefill_tokens_per_s"] > 0 < metrics["decode_tokens_per_s"]
        hashes.add(metrics["token_hash"])
    assert hashes == {expected.token_hash}


def test_perplexity_of_token_arrays(run_json: RunJson, fails: Fails, pressed: Path) -> None:
    tokens = np.array([ord(letter) - 30 for letter in TEXT[:1300]]).reshape(13, 100)
    np.savez("lab.npz", input_ids=tokens, labels=tokens)
    metrics = run_json("eval", pressed, "--data", "lab.npz")
    text = run_json("eval", pressed, "--data", "text.txt", "--window", 100)
    for key in ("perplexity", "tokens", "windows", "window", "token_hash"):
        assert metrics[key] == text[key]
    mask = np.ones_like(tokens)
    mask[3, 90:] = 0
    np.savez("padded.npz", input_ids=tokens, attention_mask=mask)
    assert "the attention_mask has zeros" in fails("eval", pressed, "--data", "padded.npz")
    np.savez("other.npz", x=tokens)
    message = fails("eval", pressed, "--data", "other.npz")
    assert "perplexity needs an array input_ids of integers (rows, tokens), or a text" in message


def test_dtype_and_number_of_windows(run_json: RunJson, dense: Path) -> None:
    options = ("--window", 64, "--windows", 2)
    metrics = run_json("eval", dense, "--data", "text.txt", *options, "--dtype", "bfloat16")
    assert (metrics["dtype"], metrics["windows"]) == ("bfloat16", 2)
    exact = run_json("eval", dense, "--data", "text.txt", *options)
    assert exact["dtype"] == "float32"
    assert 0 < abs(exact["perplexity"] - metrics["perplexity"]) < 1


def save_gpt2(folder: Path, **sizes: int) -> None:
    """Put a small GPT-2, which has a table of positions, in the place of the model of a folder."""
    library = pytest.importorskip("transformers")
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    sizes = {"vocab_size": 96, "n_embd": 8, "n_layer": 1, "n_head": 2, **sizes}
    config = library.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)
    library.GPT2LMHeadModel(config).save_pretrained(folder)


@pytest.mark.parametrize(("context", "prompt"), [(2, 1), (3, 2), (16, 8), (33, 17), (80, 48)])
def test_a_short_context(
    run_json: RunJson, fails: Fails, dense: Path, context: int, prompt: int
) -> None:
    save_gpt2(dense, n_positions=context)
    metrics = run_json("eval", dense, "--data", "text.txt")
    assert (metrics["window"], metrics["prompt"]) == (context, prompt)
    assert metrics["decode_tokens_per_s"] > 0
    message = fails("eval", dense, "--data", "text.txt", "--window", context + 1)
    assert f"the longest context of the model is {context}" in message


def test_a_vocabulary_smaller_than_that_of_the_tokenizer(fails: Fails, dense: Path) -> None:
    save_gpt2(dense, vocab_size=80)
    message = fails("eval", dense, "--data", "text.txt")
    assert "the token 92, but the model's vocabulary is 0 to 79" in message


def test_the_table_says_the_same(shell: Shell, dense: Path) -> None:
    outcome = shell("eval", dense, "--data", "text.txt")
    assert outcome.code == 0, outcome.err
    for word in ("perplexity", "5 windows of 256", "prefill", "decode", "tokens/s", "peak memory"):
        assert word in outcome.out


def test_a_text_is_for_language_models(fails: Fails, dense: Path) -> None:
    message = fails("eval", "--model", "small_nets:net", "--data", "text.txt")
    assert "needs the tokenizer of a Transformers model" in message
    for file in dense.glob("tokenizer*"):
        file.unlink()
    assert "the tokenizer of " in fails("eval", dense, "--data", "text.txt")


def test_export_of_a_dense_folder(run_json: RunJson, pressed: Path) -> None:
    library = pytest.importorskip("transformers")
    result = run_json("export", pressed, "--dense", "again")
    again = library.AutoModelForCausalLM.from_pretrained("again")
    expected = tp.unpress(library.AutoModelForCausalLM.from_pretrained(pressed))
    state = again.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.state_dict().items())
    assert result["bytes"] == sum(file.stat().st_size for file in Path("again").glob("*.safe*"))
    assert (Path("again") / "tokenizer.json").is_file()


def test_export_of_a_folder_that_names_its_model(shell: Shell, run_json: RunJson) -> None:
    assert shell("press", "-m", "lenet5", "-s", "tt_weight", "-r", 2, "-o", "small").code == 0
    run_json("export", "small", "--dense", "large")
    tensors = load_file("large/model.safetensors")
    assert tensors.keys() == tp.load_model("lenet5").state_dict().keys()


def test_export_of_a_folder_with_a_file(run_json: RunJson, fails: Fails, tmp_path: Path) -> None:
    lenet = tp.load_model("lenet5")
    pressed = tp.press(lenet, tp.plan(lenet, scheme="channel_svd", ranks=4))
    (tmp_path / "small").mkdir()
    tp.save(pressed, tmp_path / "small" / "model.tpz", network="lenet5")
    result = run_json("export", "small", "--dense", "large")
    tensors = load_file("large/model.safetensors")
    expected = tp.unpress(tp.load(tmp_path / "small" / "model.tpz")).state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in tensors)
    assert result["bytes"] == Path("large/model.safetensors").stat().st_size
    message = fails("export", "small", "--adapter", "large", "--out", "adapter")
    assert "small holds model.tpz: --adapter needs a folder that press wrote" in message


def test_export_of_an_encoded_language_model(run_json: RunJson, dense: Path) -> None:
    library = pytest.importorskip("transformers")
    model = library.AutoModelForCausalLM.from_pretrained(dense)
    dense.with_name("small").mkdir()
    tp.encode(model, dense.with_name("small") / "model.tpz", bits=6)
    run_json("export", "small", "--dense", "again", "--model", f"hf:{dense}")
    again = library.AutoModelForCausalLM.from_pretrained("again").state_dict()
    coded = tp.load(dense.with_name("small") / "model.tpz", model).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in coded.items())


def test_export_of_an_adapter(run_json: RunJson, pressed: Path) -> None:
    dense = pressed.with_name("dense")
    run_json("export", pressed, "--adapter", dense, "--out", "adapter", "--rank", 4)
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    assert config["base_model_name_or_path"] == str(pressed)
    assert len(load_file("adapter/adapter_model.safetensors")) == 2 * len(config["target_modules"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "pressed"], "one of --onnx FILE, --dense FOLDER and --adapter BASE"),
        (["export", "pressed", "--dense", "a", "--onnx", "b"], "one of"),
        (["export", "--model", "lenet5", "--dense", "a"], "need the folder of a pressed model"),
        (["export", ".", "--adapter", "dense"], "by --out"),
    ],
)
def test_what_export_needs(fails: Fails, words: list[str], message: str) -> None:
    assert message in fails(*words)
