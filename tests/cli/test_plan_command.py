from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorpress as tp
from command_line import Outcome
from tensorpress.cli.plan_arguments import parse_overrides
from tensorpress.errors import InvalidArgumentError
from tensorpress.models.hugging_face import transformers_library
from tensorpress.models.zoo import build, save_weights
from tensorpress.planning.plan import Plan
from tensorpress.planning.scores import Scored, Scores

Shell = Callable[..., Outcome]
RunJson = Callable[..., Any]
Fails = Callable[..., str]

NET = ("plan", "--model", "small_nets:net", "--input", "1x3x8x8")


def test_a_plan_is_the_one_of_the_library(run_json: RunJson, dense: nn.Module) -> None:
    result = run_json(*NET, "--scheme", "tucker2", "--ranks", "0.5", "--round-to", "2")
    expected = tp.plan(dense, torch.zeros(1, 3, 8, 8), scheme="tucker2", ranks=0.5, round_to=2)
    assert result["id"] == expected.id
    assert (result["params"], result["macs"]) == (expected.params, expected.macs)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--scheme", "tucker2", "--ranks", "2x4", "--targets", "2"], {"ranks": (2, 4)}),
        (
            ["--scheme", "tucker2", "--ranks", "2,4", "--skip", "0", "--skip", "6"],
            {"ranks": (2, 4)},
        ),
    ],
)
def test_ranks_and_patterns(
    run_json: RunJson, dense: nn.Module, words: list[str], options: Any
) -> None:
    result = run_json(*NET, *words)
    expected = tp.plan(dense, scheme="tucker2", targets=["2"], **options)
    assert result["layers"].keys() == {"2"}
    assert result["id"] == expected.id


def test_overrides_and_several_schemes(run_json: RunJson) -> None:
    result = run_json(
        *(*NET, "--scheme", "tucker2,spatial_svd", "--budget", "params=70%"),
        *("--override", '"6": {scheme: channel_svd, ranks: 3}'),
    )
    assert result["layers"]["6"]["scheme"] == "channel_svd"
    assert result["layers"]["6"]["ranks"] == [3]
    assert {result["layers"][name]["scheme"] for name in result["layers"] if name != "6"} <= {
        "tucker2",
        "spatial_svd",
    }


def test_the_table_shows_layers_totals_and_reasons(shell: Shell) -> None:
    outcome = shell(*NET, "--scheme", "channel_svd", "--ranks", "0.5", "--skip", "0")
    assert outcome.code == 0
    assert "16×8×3×3" in outcome.out
    assert "kept dense: 0 (skipped by '0')" in outcome.out
    assert "parameters" in outcome.out
    assert "MACs" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_a_core_that_layers_share_is_told(shell: Shell) -> None:
    words = ("--scheme", "scada_tucker", "--budget", "params=5000")
    outcome = shell("plan", "--model", "lenet300100", *words)
    assert "and a core 8×8×7×7 that layers share" in outcome.out


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_plan_is_written_and_read_again(run_json: RunJson, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"plan.{suffix}"
    result = run_json(*NET, "--budget", "macs=60%", "--out", file)
    assert Plan.read(file).id == result["id"]


def test_the_model_is_not_loaded_where_no_weight_matters(run_json: RunJson, fails: Fails) -> None:
    dry = ("plan", "--model", "small_nets:only_dry", "--input", "1x3x8x8")
    assert run_json(*dry, "--scheme", "tucker2", "--ranks", "0.5")["macs"] > 0
    uniform = ("--budget", "params=60%", "--allocation", "uniform", "--scheme", "tucker2")
    assert run_json(*dry, *uniform)["params"] > 0
    assert "it was loaded" in fails(*dry, "--scheme", "tucker2", "--ranks", "energy:0.9")
    assert "it was loaded" in fails(*dry, "--budget", "params=60%")


def test_a_model_that_looks_at_its_values_is_loaded(run_json: RunJson) -> None:
    words = ("--input", "1x3x8x8", "--scheme", "tucker2", "--ranks", "0.5")
    assert run_json("plan", "--model", "small_nets:looking", *words)["macs"] > 0


def test_without_inputs_macs_are_unknown(run_json: RunJson) -> None:
    result = run_json("plan", "--model", "small_nets:net", "--scheme", "tucker2", "--ranks", "0.5")
    assert "macs" not in result


def test_rules_see_the_weights_of_the_file(
    run_json: RunJson, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = build("lenet300100")
    with torch.no_grad():
        trained.ip1.weight.copy_(torch.outer(torch.ones(300), torch.arange(784.0)))
    save_weights(trained, tmp_path / "w.safetensors")
    words = ("plan", "--model", "lenet300100", "--scheme", "channel_svd", "--ranks", "energy:0.99")
    result = run_json(*words, "--weights", "w.safetensors", "--targets", "ip1")
    assert result["layers"]["ip1"]["ranks"] == [1]
    assert "random weights" not in caplog.text
    run_json(*words[:-1], "energy:0.5")
    assert "lenet300100 has random weights" in caplog.text


def test_scores_spread_a_budget(run_json: RunJson, tmp_path: Path) -> None:
    scored = {
        name: (Scored("channel_svd", (2,), loss, True),)
        for name, loss in (("0", 9.0), ("2", 0.1), ("6", 9.0))
    }
    Scores("loss", 1.0, scored).save(tmp_path / "scores.json")
    words = ("--scheme", "channel_svd", "--allocation", "scores.json", "--budget", "params=80%")
    assert run_json(*NET, *words)["layers"].keys() == {"2"}


def test_a_folder_of_transformers_is_read_tensor_by_tensor(
    run_json: RunJson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    transformers = transformers_library()
    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.BertModel(config)
    model.save_pretrained(tmp_path / "bert")
    monkeypatch.setattr("tensorpress.cli.model_source.load_by_name", None)
    words = ("--scheme", "channel_svd", "--ranks", "energy:0.6", "--targets", "encoder.*")
    result = run_json("plan", "--model", tmp_path / "bert", *words)
    expected = tp.plan(model, scheme="channel_svd", ranks="energy:0.6", targets=["encoder.*"])
    assert result["id"] == expected.id


def test_a_budget_that_is_met_leaves_nothing_to_do(shell: Shell, tmp_path: Path) -> None:
    for command in ("plan", "press", "compress"):
        said = shell(command, *NET[1:], "--budget", "params=1M", "--out", "out")
        assert said.code == 0, said.err
        assert "nothing to do: the budget params=1000000 is met already" in said.out
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "resnt20"], "unknown network 'resnt20': did you mean 'resnet20'"),
        (["--model", "small_nets:nett"], "did you mean 'net'"),
        (["--model", "small_nets:nothing"], "returns NoneType"),
        (["--model", "nowhere:x"], "nowhere:x: the module 'nowhere' cannot be imported"),
        (["--model", "lenet5", "--weights", "w.pth"], "no weight file at w.pth"),
        (["--input", "1x4x8x8"], "layer '0' (Conv2d, weight 8x3x3x3), which got 1x4x8x8: "),
        (["--input", "3by8"], "'3by8' is not an input"),
        (["--scheme", "tuker2"], "unknown scheme 'tuker2': did you mean 'tucker2'"),
        (["--targets", "layer9.*"], "unknown layer or pattern 'layer9.*'"),
        (["--skip", "re:["], "is not a valid regular expression"),
        (["--budget", "params=3MB"], "expected a number and one of the units"),
        (["--budget", "flops=50%"], "unknown budget 'flops'"),
        (["--budget", "params=1%"], "out of reach"),
        (["--budget", "params=50%", "--ranks", "0.5"], "not both"),
        (["--ranks", "evbfm"], "unknown rank rule 'evbfm'"),
        (["--override", "6 = 3"], "expected PATTERN: {KEY: VALUE"),
        (["--override", "9: {ranks: 3}"], "unknown layer or pattern '9'"),
        (["--allocation", "none.json", "--budget", "params=50%"], "no scores file at none.json"),
        (["--allocation", "unifrm", "--budget", "params=50%"], "unknown allocation 'unifrm'"),
        (["--allocation", "uniform"], "give a budget"),
        (["--out", "nowhere/plan.yaml", "--ranks", "0.5"], "nowhere/plan.yaml cannot be written"),
    ],
)
def test_what_a_user_can_get_wrong(fails: Fails, words: list[str], message: str) -> None:
    given = dict(zip(words[::2], words[1::2], strict=True))
    usual = {"--model": "small_nets:net", "--input": "1x3x8x8", "--scheme": "channel_svd"}
    if "--budget" not in given:
        usual["--ranks"] = "0.5"
    if given.get("--model", "").startswith("lenet"):
        usual["--ranks"] = "evbmf"
        del usual["--input"]
    all_words = [word for pair in (usual | given).items() for word in pair]
    assert message in fails("plan", *all_words)


def test_a_pattern_of_an_override_may_be_anything() -> None:
    result = parse_overrides(["*.a: {ranks: 3}", "re:x.*: {scheme: cp}", "'q r': {}"])
    assert list(result) == ["*.a", "re:x.*", "q r"]
    with pytest.raises(InvalidArgumentError, match="expected PATTERN"):
        parse_overrides(["a: 3"])
