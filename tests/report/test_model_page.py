import csv
import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tensorpress.errors import InvalidArgumentError
from tensorpress.report.model_page import write_model_page

FIDELITY = {
    "examples": 51,
    "error": 0.25,
    "cosine": 0.97,
    "tokens": False,
    "agreement": 0.96,
    "divergence": None,
    "loss": None,
    "dense_loss": None,
    "verdict": "outputs differ by 25.0 %: close",
}
TRIAL = {
    "name": "curvature <of> the outputs",
    "plan": "0123456789ab",
    "fidelity": FIDELITY,
    "estimate": 0.2,
    "seconds": 1.25,
    "failure": None,
    "note": None,
}
RESULT: dict[str, Any] = {
    "title": "my & net",
    "command": "tensorpress compress <x>",
    "budget": "params=50%",
    "fidelity": FIDELITY,
    "chosen": TRIAL,
    "verdict": FIDELITY["verdict"],
    "costs": {
        "params": {"dense": 266_610, "compressed": 133_000},
        "latency_ms": {"dense": 1.5, "compressed": 0.75},
    },
    "before": None,
    "metric": {"dense": 93.0, "compressed": 91.25},
    "file": None,
    "layers": [
        {
            "name": "conv1",
            "scheme": "channel_svd",
            "ranks": [3],
            "dense_params": 432,
            "params": 100,
            "dense_macs": None,
            "macs": None,
        }
    ],
    "unpressed": {"fc": "it is small"},
    "trials": [TRIAL, {**TRIAL, "name": "other", "fidelity": None, "failure": "out of reach"}],
    "warnings": ["layer 'conv1' loses 90 %"],
    "advice": ["fine-tuning"],
    "seconds": 12.5,
}


class Balanced(HTMLParser):
    """Notes elements that are not closed in order."""

    VOID = ("meta", "link", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_says_it_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_model_page(RESULT, path)
    page = path.read_text()
    for text in (
        *("my &amp; net", "133k", "49.9 % of it", "91.25", "25.0 %", "96.0 %", "out of reach"),
        *("curvature &lt;of&gt; the outputs", "conv1", "it is small", "loses 90 %", "fine-tuning"),
        "tensorpress compress &lt;x&gt;",
    ):
        assert text in page, text
    parser = Balanced()
    parser.feed(page)
    assert not parser.wrong
    assert not parser.open
    assert "<script" not in page
    saved = dict(re.findall(r'download="([^"]*)" href="data:[^,]*,([^"]*)"', page))
    assert json.loads(b64decode(saved["report.json"])) == RESULT
    [row] = csv.DictReader(b64decode(saved["layers.csv"]).decode().splitlines())
    assert (row["name"], row["ranks"], row["params"], row["ms"]) == ("conv1", "3", "100", "")


@pytest.mark.parametrize("count", [1, 300])
def test_curves_are_drawn_for_the_largest_layers_and_the_page_stays_small(
    tmp_path: Path, count: int
) -> None:
    ranks = list(range(1, 41))
    curves = [{"ranks": ranks, "errors": [1 / rank for rank in ranks]}]
    [layer] = RESULT["layers"]
    more = {"kind": "Conv2d", "error": 0.25, "curves": curves, "dense_ms": 0.5, "ms": 0.125}
    layers = [
        {**layer, **more, "name": f"blocks.{k}", "dense_params": 500 + k} for k in range(count)
    ]
    path = tmp_path / "report.html"
    write_model_page({**RESULT, "layers": layers}, path)
    page = path.read_text()
    assert len(page) < 1_500_000
    assert page.count("rank 3: error 33.3%") == min(count, 12)
    assert f"<h3>blocks.{count - 1}</h3>" in page
    assert "<td>0.125</td>" in page


def test_a_page_without_data(tmp_path: Path) -> None:
    trial = {**TRIAL, "fidelity": None, "estimate": None}
    result = {**RESULT, "chosen": trial, "trials": [trial], "metric": None, "layers": []}
    result["fidelity"] = None
    write_model_page(result, tmp_path / "report.html")
    assert "same prediction" not in (tmp_path / "report.html").read_text()


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        write_model_page(RESULT, tmp_path / "missing" / "report.html")
