import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tensorpress as tp
from command_line import Outcome
from tensorpress.checkpoints import load_checkpoint
from tensorpress.checkpoints.press_shard import ShardPress
from tensorpress.cli.app import INTERRUPTED
from tensorpress.cli.calibration_data import STREAM_SAMPLE, CommandData
from tensorpress.cli.model_source import LoadedModel
from tensorpress.cli.press import Reconstruct
from tensorpress.data import load
from tensorpress.models.hugging_face import transformers_library
from tensorpress.models.zoo import build, network, save_weights
from tensorpress.planning.plan import Plan
from tensorpress.reconstruct import layerwise

Shell = Callable[..., Outcome]
RunJson = Callable[..., Any]
Fails = Callable[..., str]

LENET = ("--model", "lenet300100", "--weights", "w.safetensors")
SVD = ("--scheme", "channel_svd", "--ranks", "0.1")


@pytest.fixture
def trained(tmp_path: Path) -> nn.Module:
    """A network whose weights are in the file w.safetensors."""
    torch.manual_seed(1)
    model = build("lenet300100")
    save_weights(model, tmp_path / "w.safetensors")
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_model_is_pressed_into_a_folder(
    run_json: RunJson, tmp_path: Path, trained: nn.Module, images: torch.Tensor
) -> None:
    result = run_json("press", *LENET, *SVD, "--out", "pressed")
    plan = tp.plan(trained, scheme="channel_svd", ranks=0.1)
    expected = tp.press(trained, plan)
    assert result["plan"] == plan.id == Plan.read(tmp_path / "pressed" / "plan.json").id
    assert result["dense"]["params"] == 266_610
    assert result["pressed"]["params"] == plan.params
    assert result["pressed"]["macs"] < result["dense"]["macs"]
    assert min(result[side]["latency_ms"] for side in ("dense", "pressed")) > 0
    assert result["file_bytes"] > result["pressed"]["bytes"] == 4 * plan.params
    again = load_checkpoint(tmp_path / "pressed", build("lenet300100"))
    assert torch.equal(again(images), expected(images))


def test_a_plan_of_a_file_is_carried_out(shell: Shell, tmp_path: Path, trained: nn.Module) -> None:
    assert shell("plan", *LENET, "--budget", "params=20%", "--out", "plan.yaml").code == 0
    outcome = shell("press", *LENET, "--plan", "plan.yaml", "--out", "pressed")
    assert outcome.code == 0
    plan = Plan.read(tmp_path / "plan.yaml")
    assert Plan.read(tmp_path / "pressed" / "plan.json") == plan
    assert f"{plan.params:,}" in outcome.out
    assert "latency, ms" in outcome.out
    assert "written  pressed" in outcome.out


@torch.no_grad()
def test_ranks_and_factors_are_fitted_to_responses(
    run_json: RunJson, fails: Fails, tmp_path: Path, trained: nn.Module
) -> None:
    words = (*LENET, "--scheme", "channel_svd", "--budget", "params=15%")
    given = (*words, "--allocation", "responses", "--calibrate", "digits")
    result = run_json("press", *given, "--reconstruct", "nonlinear", "--out", "pressed")
    assert result["plan"] == run_json("plan", *given)["id"]
    assert result["plan"] != run_json("plan", *words)["id"]
    net = network("lenet300100")
    images = net.preprocess(load("digits").test.resize(28, 28).images)
    by_weights = tp.press(trained, tp.plan(trained, budget="params=15%", scheme="channel_svd"))
    by_responses = load_checkpoint(tmp_path / "pressed", net.build())
    expected = trained(images)
    gaps = [float((m(images) - expected).norm()) for m in (by_responses, by_weights)]
    assert gaps[0] < 0.3 * gaps[1]
    for wrong, message in {
        ("--allocation", "responses"): "--allocation responses needs --data",
        (
            "--allocation",
            "error",
            "--calibrate",
            "digits",
        ): "--data only applies to a plan with --allocation responses",
    }.items():
        assert message in fails("plan", *words, *wrong)


def test_the_choices_of_reconstruct_are_those_of_the_library() -> None:
    assert get_args(Reconstruct) == get_args(layerwise.Reconstruct)


def test_a_model_whose_inputs_nobody_knows_is_not_timed(run_json: RunJson) -> None:
    words = ("press", "--model", "small_nets:net", "--scheme", "tucker2", "--ranks", "0.5")
    assert set(run_json(*words, "--out", "a")["pressed"]) == {"params", "bytes"}
    assert "macs" in run_json(*words, "--out", "b", "--input", "1x3x8x8")["pressed"]


@torch.no_grad()
def test_a_checkpoint_is_pressed_without_being_loaded(
    run_json: RunJson, tmp_path: Path, dense: nn.Module
) -> None:
    (tmp_path / "dense").mkdir()
    save_file(dense.state_dict(), tmp_path / "dense" / "model.safetensors")
    words = ("--model", "small_nets:net", "--input", "1x3x8x8")
    result = run_json("press", "dense", *words, *SVD, "--out", "pressed")
    plan = tp.plan(dense, torch.zeros(1, 3, 8, 8), scheme="channel_svd", ranks=0.1)
    assert result["plan"] == plan.id
    assert result["pressed"] == {"params": plan.params, "macs": plan.macs, "bytes": plan.bytes}
    pressed = load_checkpoint(tmp_path / "pressed", dense)
    image = torch.randn(1, 3, 8, 8)
    expected = tp.press(dense, plan).eval()(image)
    torch.testing.assert_close(pressed(image), expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_transformers_says_itself_what_it_is(
    run_json: RunJson, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    transformers = transformers_library()
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    result = run_json("press", "bert", *SVD, "--out", "pressed")
    assert result["pressed"]["macs"] < result["dense"]["macs"]
    costs = run_json("eval", "pressed")
    assert (costs["params"], costs["macs"]) == (
        result["pressed"]["params"],
        result["pressed"]["macs"],
    )


def test_what_a_user_can_get_wrong(fails: Fails, tmp_path: Path, trained: nn.Module) -> None:
    assert "a model by --model" in fails("press", *SVD, "--out", "x")
    assert "no plan at none.yaml" in fails("press", *LENET, "--plan", "none.yaml", "--out", "x")
    assert "give a budget, or one scheme with its ranks" in fails("press", *LENET, "--out", "x")
    assert "is not a folder" in fails("press", "nowhere", "--model", "lenet5", *SVD, "--out", "x")
    both = fails("press", "nowhere", *LENET, *SVD, "--out", "x")
    assert "has weights: remove --weights" in both
    assert not (tmp_path / "x").exists()


def test_a_cluster_that_does_not_answer_is_named(
    fails: Fails, tmp_path: Path, trained: nn.Module
) -> None:
    pytest.importorskip("distributed")
    words = ("press", *LENET, *SVD, "--out", "x", "--cluster", "no address")
    assert "no Dask scheduler answers at no address" in fails(*words)
    assert not (tmp_path / "x").exists()


def test_a_plan_of_another_model_is_refused(
    shell: Shell, fails: Fails, tmp_path: Path, trained: nn.Module
) -> None:
    assert shell("plan", "--model", "small_nets:net", *SVD, "--out", "plan.json").code == 0
    message = fails("press", *LENET, "--plan", "plan.json", "--out", "x")
    assert "which this model does not have" in message
    message = fails("press", *LENET, "--plan", "plan.json", *SVD, "--out", "x")
    assert "plan.json is a plan: remove the options" in message
    content = json.loads((tmp_path / "plan.json").read_text())
    content["layers"]["6"]["ranks"] = [900]
    (tmp_path / "plan.json").write_text(json.dumps(content))
    message = fails("press", *LENET, "--plan", "plan.json", "--out", "x")
    assert "plan.json: layer '6'" in message


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorpress.cli.press.tp.press", None)
    words = ("press", "--model", "small_nets:net", *SVD, "--out")
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    assert "file already exists" in fails(*words, "file")
    assert "full already exists" in fails(*words, "full")
    assert "file/x cannot be written" in fails(*words, "file/x")


@pytest.fixture
def gpt2(tmp_path: Path) -> nn.Module:
    """A small language model, whose checkpoint is in the folder gpt2."""
    pytest.importorskip("transformers")
    transformers = transformers_library()
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "gpt2")
    assert isinstance(model, nn.Module)
    return model.eval()


def write_tokens(path: Path) -> list[torch.Tensor]:
    """Write 40 rows of 32 tokens, of which every fifth is left for tests."""
    tokens = torch.randint(0, 96, (40, 32), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": tokens}, path)
    loaded = LoadedModel("gpt2", nn.Linear(1, 1, device="meta"), "hf:gpt2")
    data = CommandData.open(loaded, str(path), None, None).sample(STREAM_SAMPLE)
    return [batch["input_ids"] for batch in data]


def test_a_checkpoint_is_calibrated_on_rows_of_tokens(
    run_json: RunJson, tmp_path: Path, gpt2: nn.Module
) -> None:
    rows = write_tokens(tmp_path / "tokens.safetensors")
    assert sum(map(len, rows)) == STREAM_SAMPLE
    words = ("press", "gpt2", "--budget", "params=80%", "--data", "tokens.safetensors")
    result = run_json(*words, "--out", "pressed")
    assert result["pressed"]["params"] <= 0.8 * result["dense"]["params"]
    options = {"budget": "params=80%", "calibration": rows}
    plan = tp.press_checkpoint(tmp_path / "gpt2", tmp_path / "again", **options)
    assert result["plan"] == plan.id
    files = [tmp_path / name / "model.safetensors" for name in ("pressed", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_checkpoint_is_calibrated_on_a_text(
    run_json: RunJson, tmp_path: Path, gpt2: nn.Module
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: place for place, word in enumerate(["the", "cat", "sat", "on", "a", "mat"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers_library().PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.save_pretrained(tmp_path / "gpt2")
    text = "the cat sat on the mat a mat sat on " * 20
    (tmp_path / "text.txt").write_text(f"{text}\n" * 5)
    lines = [json.dumps({"text": f"{text}\n"})] * 5
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    for kind in ("txt", "jsonl"):
        run_json("press", "gpt2", *SVD, "--data", f"text.{kind}", "--out", f"out-{kind}")
    files = [tmp_path / f"out-{kind}" / "model.safetensors" for kind in ("txt", "jsonl")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_calibration_of_a_checkpoint_refuses(
    fails: Fails, tmp_path: Path, gpt2: nn.Module
) -> None:
    words = ("press", "gpt2", *SVD, "--out", "x", "--data")
    assert "dogs" in fails(*words, "dogs")
    (tmp_path / "text.txt").write_text("a text\n" * 5)
    assert "gpt2 has no tokenizer" in fails(*words, "text.txt")
    write_tokens(tmp_path / "tokens.safetensors")
    assert "needs the whole model" in fails(*words, "tokens.safetensors", "--reconstruct", "refit")
    assert "in one process" in fails(*words, "tokens.safetensors", "--processes", "2")
    save_file({"input_ids": torch.full((40, 32), 96)}, tmp_path / "far.safetensors")
    assert "index out of range" in fails(*words, "far.safetensors")
    assert not (tmp_path / "x").exists()


def test_ctrl_c_says_how_to_go_on(
    shell: Shell, tmp_path: Path, gpt2: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokens(tmp_path / "tokens.safetensors")
    words = ("press", "gpt2", *SVD, "--data", "tokens.safetensors", "--out")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    assert shell(*words, "whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(ShardPress, "press", stop)
        outcome = shell(*words, "out")
    assert outcome.code == INTERRUPTED
    assert outcome.err.splitlines()[-1] == (
        "error: interrupted: out has the results so far: repeat the command to continue"
    )
    assert shell(*words, "out").code == 0
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()
