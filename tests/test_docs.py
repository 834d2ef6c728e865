"""The pages: their code runs and prints what they say, their tables are those of today."""

import contextlib
import io
import pickle
import re
import runpy
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.models.torchvision import mend_torchvision
from tensorpress.models.zoo import build
from tensorpress.runs.recipe_sections import Press
from tensorpress.schemes.registry import SCHEMES
from tensorpress.utils.config_parsing import parse_yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
ELSEWHERE = ("docs/many-machines.md",)
"""Pages whose code needs clusters: it is compiled, not run."""

BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


CODE_PAGES = [page for page in PAGES if any(kind == "python" for kind, _ in blocks(page))]


def run_code(page: str, names: dict[str, Any]) -> None:
    """Run the Python blocks in one namespace; a text block after one is what it prints."""
    torch.manual_seed(0)
    parts = blocks(page)
    code = "".join(text for kind, text in parts if kind == "python")
    if "transformers" in code or "hugging_face" in code:
        mend_torchvision()
        pytest.importorskip("transformers", reason="the page uses Transformers")
    if "export_onnx" in code:
        pytest.importorskip("onnxscript", reason="the page writes ONNX files")
        pytest.importorskip("onnxruntime", reason="the page runs ONNX files")
    if "torchvision" in code:
        pytest.importorskip("PIL", reason="the page reads pictures")
        mend_torchvision()
        pytest.importorskip("torchvision", reason="the page uses torchvision")
    for number, (language, text) in enumerate(parts):
        if language != "python" or ("import lightning" in text and find_spec("lightning") is None):
            continue
        program = compile(text, f"{page}, block {number}", "exec")
        if page in ELSEWHERE:
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(program, names)
        if parts[number + 1 :] and parts[number + 1][0] == "text":
            assert out.getvalue() == parts[number + 1][1], f"{page}, block {number}"


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 40, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(40, 40, 3),
        nn.Flatten(),
        nn.Linear(160, 9),
    )


def names_of_compress() -> dict[str, Any]:
    data = torch.randn(6, 16, 4, 4, 4)
    return {
        "model": small_network(),
        "batches": list(data[:4]),
        "held_out": list(data[4:]),
        "example_inputs": data[0, :1],
    }


def names_of_training() -> dict[str, Any]:
    batches = [(torch.randn(16, 800), torch.arange(16) % 9)]
    model = nn.Sequential(nn.Linear(800, 600), nn.ReLU(), nn.Linear(600, 9))
    return {"dense": model, "train_batches": batches, "validation_batches": batches}


def names_of_checkpoints() -> dict[str, Any]:
    mend_torchvision()
    transformers = pytest.importorskip("transformers", reason="the page loads one of its models")
    config = transformers.LlamaConfig(
        vocab_size=80, hidden_size=64, intermediate_size=96, num_hidden_layers=1
    )
    return {"tp": tp, "model": transformers.LlamaForCausalLM(config)}


def names_of_transformers() -> dict[str, Any]:
    mend_torchvision()
    transformers = pytest.importorskip("transformers", minversion="4.57")
    pytest.importorskip("peft", reason="the page uses LoRA")
    tokenizers = pytest.importorskip("tokenizers")
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    transformers.LlamaForCausalLM(config).save_pretrained("llama")
    vocabulary = {"[UNK]": 0, **{chr(32 + i): i + 1 for i in range(95)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    tokenizer.save_pretrained("llama")
    rows = torch.randint(3, 96, (8, 8))
    return {"examples": [{"input_ids": row, "labels": row} for row in rows]}


def names_of_tutorial() -> dict[str, Any]:
    names_of_transformers()
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "slept"]
    Path("text.txt").write_text(" ".join(words[int(k)] for k in torch.randint(8, (300,))))
    return {}


def names_of_language_models() -> dict[str, Any]:
    rows = torch.randint(80, (40, 16))
    batches = [{"input_ids": x, "labels": x} for x in rows.split(8)]
    return {**names_of_checkpoints(), "batches": batches}


def names_of_readme() -> dict[str, Any]:
    def factory() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(4, 40, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2560, 10)
        )

    loader = [(torch.randn(32, 4, 8, 8), torch.arange(32) % 10)]
    return {
        "model": factory(),
        "factory": factory,
        "loader": loader,
        "batches": [x for x, _ in loader],
        "conv": nn.Conv2d(8, 8, 3),
        "example_inputs": torch.zeros(2, 4, 8, 8),
    }


def names_of_finetuning() -> dict[str, Any]:
    x = torch.randn(6, 16, 4, 4, 4)
    batches = list(zip(x, torch.arange(96).reshape(6, 16) % 9, strict=True))
    dense = small_network()
    plan = tp.plan(dense, scheme="channel_svd", ranks=0.5)
    return {
        "tp": tp,
        "dense": dense,
        "plan": plan,
        "pressed": tp.press(dense, plan),
        "train_batches": batches[:4],
        "validation_batches": batches[4:],
    }


NAMES: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/ada-tucker.md": lambda: {"tp": tp, "model": build("lenet5")},
    "docs/checkpoints.md": names_of_checkpoints,
    "docs/coding.md": names_of_compress,
    "docs/compress.md": names_of_compress,
    "docs/finetuning.md": names_of_finetuning,
    "docs/language-models.md": names_of_language_models,
    "docs/training-for-size.md": names_of_training,
    "docs/transformers.md": names_of_transformers,
    "docs/tutorials/language-model.md": names_of_tutorial,
    "README.md": names_of_readme,
}
"""What the code of a page takes for granted, such as the model of its reader."""


@pytest.mark.parametrize("page", [*CODE_PAGES, "README.md"])
def test_code_runs_and_prints_what_the_page_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = NAMES[page]() if page in NAMES else {}
    with patch.dict(SCHEMES):
        run_code(page, {"__name__": "page", **names})


def test_pages_with_code_of_their_own_names_exist() -> None:
    assert set(NAMES) | set(ELSEWHERE) <= {*CODE_PAGES, "README.md"}


def test_the_reference_has_every_public_name_once() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/api").glob("*.md"))
    places = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert len(places) == len(set(places))
    entries = []
    for place in places:
        module, _, name = place.rpartition(".")
        if module == "tensorpress.callbacks.lightning" and find_spec("lightning") is None:
            continue
        if module == "tensorpress.callbacks.hugging_face":
            mend_torchvision()
        entries.append(getattr(import_module(module), name))
    for name in tp.__all__:
        assert getattr(tp, name) in entries, name


def test_the_pictures_are_those_that_their_script_draws() -> None:
    drawn = runpy.run_path(str(ROOT / "docs/draw_schemes.py"))["pictures"]()
    for name, picture in drawn.items():
        assert (ROOT / f"docs/assets/{name}.svg").read_text(encoding="utf-8") == picture, name


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 10)),
    )


def tied_network() -> nn.Module:
    net = nn.Sequential(nn.Embedding(100, 32), nn.Linear(32, 100, bias=False))
    net[1].weight = net[0].weight
    return net


def damaged_file() -> None:
    Path("model.tpz").write_bytes(Path("model.tpz").read_bytes()[:-9])
    tp.load("model.tpz", network())


def network_with_nan() -> nn.Module:
    net = nn.Sequential(nn.Linear(80, 80))
    net[0].weight.data[0, 0] = float("nan")
    return net


def pressed(**options: Any) -> nn.Module:
    net = network()
    return tp.press(net, tp.plan(net, **options))


IMAGES = torch.zeros(1, 3, 16, 16)
MISTAKES: list[Callable[[], Any]] = [
    lambda: tp.plan(network(), budget="macs=50%"),
    lambda: tp.plan(network(), IMAGES, budget="params=0.1%"),
    lambda: tp.plan(network(), IMAGES, budget="params=50%", skip=["head"]),
    lambda: tp.plan(tied_network(), scheme="channel_svd", ranks=4),
    lambda: tp.plan(
        network(),
        scheme="channel_svd",
        overrides={"*": {"ranks": 2}, "re:[026]": {"ranks": 3}},
    ),
    lambda: tp.plan(network_with_nan(), scheme="channel_svd", ranks="evbmf"),
    lambda: tp.press(network(), "macs=50%"),
    lambda: tp.compress(network(), "params=50%", IMAGES),
    lambda: tp.compress(network(), "params=50%", [torch.randn(8, 3, 16, 16)]).warnings[0],
    lambda: tp.compress(network(), "params=50%").verdict,
    lambda: tp.load("model.tpz"),
    lambda: tp.load("model.tpz", nn.Sequential(nn.Linear(3, 4))),
    lambda: tp.load("model.tpz", pressed(scheme="channel_svd", ranks=4)),
    damaged_file,
    lambda: tp.load_model("torchvision:resnet18", weights="r18.pt"),
    lambda: pickle.dumps(pressed(scheme="svd_weight", ranks=2, targets=["6"])),
]
"""What is done wrong on the page on troubleshooting, in its order."""


def test_messages_are_those_of_the_page_on_troubleshooting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mend_torchvision()
    pytest.importorskip("torchvision", reason="one message is about a model of torchvision")
    monkeypatch.chdir(tmp_path)
    tp.save(network(), "model.tpz")
    torch.save(network(), "r18.pt")
    messages = [text.rstrip("\n") for kind, text in blocks("docs/troubleshooting.md")]
    assert len(messages) == len(MISTAKES)
    for message, mistake in zip(messages, MISTAKES, strict=True):
        caplog.clear()
        try:
            said = [mistake()]
        except (tp.TensorPressError, RuntimeError) as error:
            said = [str(error)]
        assert message in [*said, *caplog.messages]


def test_recipe_sections_are_valid() -> None:
    sections = [parse_yaml(text) for kind, text in blocks("docs/schemes.md") if kind == "yaml"]
    assert sections
    for section in sections:
        Press.model_validate(section["press"])


@pytest.mark.parametrize(
    ("page", "name", "module"),
    [
        ("docs/schemes.md", "schemes", "models.schemes_table"),
        ("docs/decompositions.md", "cp", "decompose.cp_table"),
    ],
)
def test_a_table_is_what_its_source_says_today(page: str, name: str, module: str) -> None:
    make_table = getattr(import_module(f"benchmarks.{module}"), module.rpartition(".")[2])
    table = make_table()
    text = (ROOT / page).read_text(encoding="utf-8")
    assert f"<!-- table: {name} -->\n{table}\n<!-- end -->" in text
