"""The page: offline, escaped, and complete whatever is missing."""

import dataclasses
import re

import pytest

from tensorpress.errors import InvalidArgumentError
from tensorpress.report import LayerRow, ReportContent, render, write_page

HOSTILE = '</script><script>alert("x")</script><b>&'


@pytest.fixture(scope="module")
def page(lenet):
    return render(lenet)


def test_every_number_of_the_tables_is_on_the_page(page, lenet):
    for text in ("2,104", "431,080", "2,980", "0.93", "144.7×", "50×25×20", "relative"):
        assert text in page
    for row in lenet.layers:
        assert f"{row.dense_params:,}" in page


def test_nothing_is_loaded_from_anywhere(page):
    markup = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    links = re.findall(r"""(?:src|href|action)\s*=\s*["']?([^"'\s>]*)""", markup)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"@import|url\((?!data:)", markup)
    assert "default-src 'none'" in markup


def test_text_of_the_content_cannot_become_markup():
    row = LayerRow(HOSTILE, HOSTILE, HOSTILE, (2, 2), (2, 2), (1, 1), 4, 5, note=HOSTILE)
    content = ReportContent(
        HOSTILE, HOSTILE, {"device": HOSTILE, HOSTILE: 1}, [row], recipe_yaml=HOSTILE
    )
    page = render(content)
    assert "alert(" in page
    assert '<script>alert("x")' not in page
    assert page.count("</script>") == render(ReportContent("plain")).count("</script>")


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
    data = page[page.index('id="plots"') :]
    assert "NaN" not in data.split("</script>")[0]


def test_written_page_is_the_rendered_one(tmp_path, page, lenet):
    write_page(lenet, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"report\.html cannot be written"):
        write_page(ReportContent("x"), tmp_path / "no" / "report.html")
