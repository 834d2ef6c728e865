"""The page: offline, escaped, and complete whatever is missing."""

import dataclasses
import re

import pytest

from tensorpress.errors import InvalidArgumentError
from tensorpress.report import (
    Curve,
    Curves,
    FilePart,
    Histogram,
    LayerRow,
    ReportContent,
    render,
    write_page,
)

HOSTILE = '</script><script>alert("x")</script><b>&'


@pytest.fixture(scope="module")
def page(lenet):
    return render(lenet)


def test_every_number_of_the_tables_is_on_the_page(page, lenet):
    for text in ("2,104", "431,080", "2,980", "0.93", "144.7×", "50×25×20", "relative"):
        assert text in page
    for row in lenet.layers:
        assert f"{row.dense_params:,}" in page


def test_nothing_is_loaded_from_anywhere_and_nothing_runs(page):
    links = re.findall(r"""(?:src|href|action)\s*=\s*["']?([^"'\s>]*)""", page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"@import|url\((?!data:|#)", page)
    assert "default-src 'none'" in page
    assert "<script" not in page


def test_a_page_is_small(lenet, deep):
    assert max(len(render(lenet)), len(render(deep))) < 1_500_000


def test_names_of_a_page_are_unique_and_references_lead_to_them(page):
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == 2 + 2 + 2 + 4
    for plot in plots:
        names = re.findall(r' id="([^"]*)"', plot)
        assert len(names) == len(set(names))
        assert set(re.findall(r"""(?:href="|url\()#([^")]*)""", plot)) <= set(names)
    names = [set(re.findall(r' id="([^"]*)"', plot)) for plot in plots]
    assert len(set.union(*names)) == sum(map(len, names))


def test_plots_take_the_colours_of_the_page(page):
    css = page[page.index("<style>") : page.index("</style>")]
    for name, color in re.findall(r"--(text|muted|line): (#\w{6})", css)[:3]:
        assert f"var(--{name})" in page
        assert page.count(color) == css.count(color)


def test_text_of_the_content_cannot_become_markup():
    row = LayerRow(HOSTILE, HOSTILE, HOSTILE, (2, 2), (2, 2), (1, 1), 4, 5, note=HOSTILE)
    content = ReportContent(
        *(HOSTILE, HOSTILE, {"device": HOSTILE, HOSTILE: 1}, [row]),
        histograms=[Histogram(HOSTILE, [0.0, 1.0], [1], [1])],
        curves=[Curves(HOSTILE, HOSTILE, [Curve(HOSTILE, [1], [2.0])])],
        file_parts=[FilePart(HOSTILE, 3)],
        recipe_yaml=HOSTILE,
    )
    page = render(content)
    assert "alert(" in page
    assert "<script" not in page
    assert "<b>" not in page


def test_missing_numbers_are_dashes_and_empty_plots_are_left_out():
    page = render(ReportContent("Nothing yet", metrics={"dense": None, "file": {}}))
    assert "– → –" in page
    assert "Layer by layer" not in page
    assert "Stored weights" not in page


def test_a_network_of_many_layers_with_long_names(deep):
    page = render(deep)
    assert "more layers</summary>" in page
    assert all(row.name in page for row in deep.layers)


def test_a_page_made_again_from_json_is_the_same_page(page, lenet):
    assert render(ReportContent.from_json(lenet.to_json())) == page


def test_values_that_are_not_finite_leave_gaps(lenet):
    metrics = {**lenet.metrics, "file": {"bytes": float("nan"), "error": float("inf")}}
    page = render(dataclasses.replace(lenet, metrics=metrics))
    assert not re.search(r"\b(nan|inf)\b", " ".join(re.findall(r' d="([^"]*)"', page)))


def test_written_page_is_the_rendered_one(tmp_path, page, lenet):
    write_page(lenet, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"report\.html cannot be written"):
        write_page(ReportContent("x"), tmp_path / "no" / "report.html")
