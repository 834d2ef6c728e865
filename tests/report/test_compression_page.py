from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tensorpress.errors import InvalidArgumentError
from tensorpress.report.compression_page import write_compression_page

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
    "budget": "params=50%",
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
    write_compression_page(RESULT, "my & net", path, command="tensorpress compress <x>")
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
    assert len(page) < 20_000


def test_a_page_without_data(tmp_path: Path) -> None:
    trial = {**TRIAL, "fidelity": None, "estimate": None}
    result = {**RESULT, "chosen": trial, "trials": [trial], "metric": None, "layers": []}
    write_compression_page(result, "net", tmp_path / "report.html")
    assert "same prediction" not in (tmp_path / "report.html").read_text()


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        write_compression_page(RESULT, "net", tmp_path / "missing" / "report.html")
