"""The pages: their code runs and prints what they say, their tables are those of today."""

import contextlib
import io
import re
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from tensorpress.runs.recipe_sections import Press
from tensorpress.schemes.registry import SCHEMES
from tensorpress.utils.config_parsing import parse_yaml

ROOT = Path(__file__).parents[1]
PAGES = ("schemes", "decompositions", "planning", "sensitivity", "models", "reconstruction")
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def run_code(page: str, names: dict[str, Any]) -> None:
    """Run the Python blocks in one namespace; a text block after one is what it prints."""
    torch.manual_seed(0)
    found = blocks(page)
    if any("export_onnx" in text for _, text in found):
        pytest.importorskip("onnxscript", reason="the page writes ONNX files")
        pytest.importorskip("onnxruntime", reason="the page runs ONNX files")
    for number, (language, text) in enumerate(found):
        if language != "python":
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(text, f"{page}, block {number}", "exec"), names)
        if found[number + 1 :] and found[number + 1][0] == "text":
            assert out.getvalue() == found[number + 1][1], f"{page}, block {number}"


@pytest.mark.parametrize("name", PAGES)
def test_code_prints_what_the_page_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = f"docs/{name}.md"
    assert any(language == "python" for language, _ in blocks(page))
    with patch.dict(SCHEMES):
        run_code(page, {})


def test_the_code_of_the_page_on_compressing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 40, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(40, 40, 3),
        nn.Flatten(),
        nn.Linear(160, 9),
    )
    monkeypatch.chdir(tmp_path)
    data = torch.randn(6, 16, 4, 4, 4)
    names = {"model": model, "batches": list(data[:4]), "held_out": list(data[4:])}
    run_code("docs/compress.md", {**names, "example_inputs": data[0, :1]})
    assert (tmp_path / "small.tpz").exists()


def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def factory() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(4, 40, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2560, 10)
        )

    monkeypatch.chdir(tmp_path)
    loader = [(torch.randn(4, 4, 8, 8), torch.arange(4))]
    names = {
        "model": factory(),
        "factory": factory,
        "loader": loader,
        "batches": [x for x, _ in loader],
        "conv": nn.Conv2d(8, 8, 3),
        "example_inputs": torch.zeros(2, 4, 8, 8),
    }
    run_code("README.md", names)
    assert (tmp_path / "model.tpz").exists()


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
