import re
from pathlib import Path

import pytest
from test_training import examples
from tiny_models import llama, save_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"


def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft", reason="the page uses LoRA")
    llama().save_pretrained(tmp_path / "llama")
    save_tokenizer(tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    names = {"examples": examples()}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    assert "10 630\n" in capsys.readouterr().out
    assert (tmp_path / "dense" / "model.safetensors").is_file()
