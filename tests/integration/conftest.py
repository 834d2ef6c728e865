from pathlib import Path

import pytest
from tiny_runs import recipe

from tensorpress.runs.run import RunResult, run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run of the tiny recipe that nobody disturbed."""
    return run(recipe(), tmp_path_factory.mktemp("finished") / "run", seed=3)


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report, which takes as long as a tiny run."""

    def touch(_: object, path: Path) -> None:
        path.write_text("<html></html>")

    monkeypatch.setattr("tensorpress.runs.run.write_page", touch)
