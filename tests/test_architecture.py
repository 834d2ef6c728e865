"""The house: rooms import what docs/architecture.md allows, and nothing stands loose."""

import ast
import re
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "tensorpress"
PAGE = ROOT / "docs" / "architecture.md"
LOOSE = {"__init__", "__main__", "errors"}


def room(module: str) -> str:
    """Return the room of a dotted name below the package."""
    return "models/zoo" if module.startswith("models.zoo") else module.partition(".")[0]


def imported(path: Path) -> set[str]:
    """Return the modules of ours that a file imports, below the package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name.partition(".")[2] for name in names if name.startswith("tensorpress.")}


def arrows() -> dict[str, set[str]]:
    """Return the rooms that each room imports today."""
    result: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if name in ("__init__", "__main__"):
            continue
        here = room(name)
        result[here] |= {room(name) for name in imported(path)} - {here, "__version__"}
    return result


def allowed() -> dict[str, set[str]]:
    """Return the table of the page."""
    table = PAGE.read_text(encoding="utf-8").partition("| room | may import |")[2]
    rows = re.findall(r"^\| ([\w/]+) \|([^|]*)\|$", table.partition("\n\n")[0], re.MULTILINE)
    return {name: set(re.findall(r"[\w/]+", cell)) for name, cell in rows}


def test_every_arrow_is_on_the_page_and_every_arrow_of_the_page_is_needed() -> None:
    assert {name: sorted(rooms) for name, rooms in sorted(arrows().items())} == {
        name: sorted(rooms) for name, rooms in sorted(allowed().items())
    }


def test_there_is_no_circle() -> None:
    assert len(list(TopologicalSorter(arrows()).static_order())) == len(allowed())


def test_nothing_stands_loose() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == LOOSE
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_the_page_names_files_that_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = {path.name for path in ROOT.glob("src/**/*.py")}
    paths = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert name in names or name in paths or (ROOT / name).is_file(), name
