"""The pages in a browser: nothing is complained of in the console, and nothing overflows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import NAMES, VARIABLE, Browser, find_browser, open_browser
from test_model_page import FIDELITY, RESULT

from tensorpress.report import ReportContent, write_page
from tensorpress.report.comparison_page import write_comparison_page
from tensorpress.report.model_page import write_model_page
from tensorpress.sweep.page import render

LAYERS = [
    {
        **RESULT["layers"][0],
        "name": f"model.decoder.layers.{number}.self_attention.out_projection",
        "kind": "NonDynamicallyQuantizableLinear",
        "shape": [4096, 4096],
        "error": 0.123,
        "dense_macs": 16_777_216,
        "macs": 5_000_000,
        "dense_ms": 12.345,
        "ms": 3.456,
        "curves": [{"ranks": [1, 8, 64], "errors": [0.9, 0.4, 0.0]}],
    }
    for number in range(3)
]
REPORT = {
    **{key: RESULT[key] for key in ("title", "command", "fidelity", "verdict", "costs")},
    "layers": LAYERS,
    "unpressed": {layer["name"]: "skipped" for layer in LAYERS},
    "environment": {"torch": "2.13.0", "device": "cpu, x86_64"},
}
COMPARISON = {
    "title": "3 models",
    "models": [
        {
            "name": f"runs/a-rather-long-name-of-a-run/params={share}%",
            "params": 1_000_000 * share,
            "bytes": 4_000_000 * share,
            "macs": 99_000_000 * share,
            "latency_ms": 1234.5,
            "metric": 12.5,
            "fidelity": FIDELITY,
            "verdict": FIDELITY["verdict"],
        }
        for share in (30, 50, 70)
    ],
}
VARIANTS: list[dict[str, Any]] = [
    {
        "name": f"press.ranks={ranks}, quantize.step=0.25, train.epochs=100",
        "settings": {"press.ranks": ranks, "quantize.step": 0.25},
        "bytes": 1_000 * ranks,
        "validation_error": 9.0 / ranks,
        "frontier": True,
        "runs": [],
    }
    for ranks in (2, 8)
]
SWEEP = {
    "title": "LeNet-5",
    "network": "lenet5",
    "data": "mnist",
    "seeds": [0, 1],
    "variants": VARIANTS,
    "picks": [],
    "references": [{"name": "a method of others", "bytes": 4_000, "error": 2.0}],
}
WIDTHS = (400, 1280)
OVERFLOW = """[
    document.documentElement.scrollWidth - document.documentElement.clientWidth,
    [...document.querySelectorAll("table, svg, pre")].filter(x => {
        let box = x.parentElement;
        while (box && getComputedStyle(box).overflowX == "visible") box = box.parentElement;
        const edge = x.getBoundingClientRect().right;
        return edge > innerWidth + 1 && (!box || box == document.documentElement);
    }).length
]"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip(f"needs Chromium: {VARIABLE}=PROGRAM, or one of {', '.join(NAMES)} on the path")
    with open_browser(program) as opened:
        yield opened


def write(name: str, page: Path, content: ReportContent) -> None:
    if name == "run":
        write_page(content, page)
    elif name == "sweep":
        page.write_text(render(SWEEP), encoding="utf-8")
    elif name == "comparison":
        write_comparison_page(COMPARISON, page)
    else:
        write_model_page(RESULT if name == "compress" else REPORT, page)


@pytest.mark.parametrize("name", ["run", "compress", "report", "sweep", "comparison"])
def test_nothing_is_wrong_in_a_page(
    browser: Browser, tmp_path: Path, name: str, deep: ReportContent
) -> None:
    page = tmp_path / "page.html"
    write(name, page, deep)
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            browser.open(page, width, scheme)
            assert browser.complaints == []
            assert browser.evaluate("document.querySelectorAll('h1').length") == 1
            assert browser.evaluate(OVERFLOW) == [0, 0], f"{name} at {width} pixels"


def test_what_is_wrong_is_seen(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<h1>x</h1><table><tr><td style='min-width: 900px'>wide</td></table>")
    browser.open(page, 400)
    wide, tables = browser.evaluate(OVERFLOW)
    assert wide > 400
    assert tables == 1
    page.write_text("<script>console.error('a'); missing()</script><img src='none.png'>")
    browser.open(page, 400)
    assert len(browser.complaints) >= 3
