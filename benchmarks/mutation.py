"""How many small faults in the code the tests of its own package see.

Each mutant is the package with one change: an operator or a number is another, a `not`, a call or a
check is gone, a function returns nothing. The tests in the mirrored folder that run the changed
line, the fastest first, have until the first failure to see it. Mutants are a random choice, the
same for a seed.

    python -m benchmarks.mutation --count 30
    python -m benchmarks.mutation --package codec --count 100 --out codec.json
"""

import argparse
import ast
import difflib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results" / "mutation.json"
RESULTS = ("killed", "timeout", "survived", "not run")
PACKAGES = ("planning", "reconstruct", "codec", "ranks")

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult},
    **{ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr},
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One change: of a file, from one byte to another, and what is put there."""

    file: str
    line: int
    start: int
    end: int
    text: str


class Mutations(ast.NodeVisitor):
    """All mutants of a file."""

    def __init__(self, file: str, source: bytes) -> None:
        self._file = file
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self.found: list[Mutant] = []
        self.visit(ast.parse(source))

    def visit(self, node: ast.AST) -> None:
        """Change a node, and those in it; what is only read or printed is left alone."""
        if isinstance(node, ast.Raise):
            self._replace(node, "pass")
        elif isinstance(node, ast.Expr):
            if isinstance(node.value, ast.Call):
                self._replace(node, "pass")
                self.generic_visit(node)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.visit(node.value)
        elif isinstance(node, ast.arguments):
            for value in (*node.defaults, *filter(None, node.kw_defaults)):
                self.visit(value)
        elif isinstance(node, ast.FunctionDef):
            self.visit(node.args)
            for statement in node.body:
                self.visit(statement)
        elif not isinstance(node, ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
            for changed in self._changes(node):
                self._replace(node, ast.unparse(changed))
            self.generic_visit(node)

    @staticmethod
    def _changes(node: ast.AST) -> Iterator[ast.AST]:
        match node:
            case ast.Compare(left, operators, right):
                for place, operator in enumerate(operators):
                    other = [*operators]
                    other[place] = OPERATORS[type(operator)]()  # type: ignore[call-overload]
                    yield ast.Compare(left, other, right)
            case ast.BoolOp(operator, values):
                yield ast.BoolOp(OPERATORS[type(operator)](), values)  # type: ignore[arg-type]
            case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
                yield ast.BinOp(left, OPERATORS[type(operator)](), right)  # type: ignore[arg-type]
            case ast.AugAssign(target, operator, value) if type(operator) in OPERATORS:
                other = OPERATORS[type(operator)]()
                yield ast.AugAssign(target, other, value)  # type: ignore[arg-type]
            case ast.UnaryOp(ast.Not() | ast.USub(), operand):
                yield operand
            case ast.Constant(bool(value)):
                yield ast.Constant(not value)
            case ast.Constant(int(value) | float(value)):
                yield ast.Constant(value + 1)
            case ast.Return(value) if not isinstance(value, ast.Constant | None):
                yield ast.Return(ast.Constant(None))
            case ast.Name(name, ast.Load()) if name in NAMES:
                yield ast.Name(NAMES[name])

    def _replace(self, node: Any, text: str) -> None:
        if isinstance(node, ast.expr):
            text = f"({text})"
        start = self._starts[node.lineno - 1] + node.col_offset
        end = self._starts[node.end_lineno - 1] + node.end_col_offset
        self.found.append(Mutant(self._file, node.lineno, start, end, text))


class Recorder:
    """A plugin of pytest: which test takes how long, and runs which lines of a package."""

    def __init__(self, package: Path) -> None:
        self._coverage = coverage.Coverage(data_file=None, source=[str(package)])
        self._test = ""
        self.seconds: dict[str, float] = {}
        self._coverage.start()  # of no test yet: what imports run, those of conftest.py too

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Note what a test runs."""
        self._test, start = item.nodeid, perf_counter()
        self._coverage.switch_context(self._test)
        result = yield
        self.seconds[self._test] = perf_counter() - start
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """Note what is run by the first of the tests of a file, and seen by all."""
        if fixturedef.scope != "function":
            self._coverage.switch_context(self._test.partition("::")[0])
        result = yield
        self._coverage.switch_context(self._test)
        return result

    def lines(self) -> dict[str, dict[int, list[str]]]:
        """Return for every file and line the tests, or files of tests, that run it."""
        self._coverage.stop()
        data = self._coverage.get_data()
        return {Path(file).name: data.contexts_by_lineno(file) for file in data.measured_files()}


def _record(tests: Path, package: Path, out: Path) -> None:
    recorder = Recorder(package)
    code = pytest.main(["-x", str(tests)], plugins=[recorder])
    out.write_text(json.dumps([int(code), recorder.seconds, recorder.lines()]))


def _test(names: Sequence[str]) -> None:
    os.setsid()  # so that whatever the tests start can be ended with them
    sys.exit(int(pytest.main(["-x", *names])))


def in_process(target: Any, *arguments: Any, seconds: float | None = None) -> int | None:
    """Return the exit code of a function in a forked process, or None where it took too long."""
    process = multiprocessing.get_context("fork").Process(target=_quiet, args=(target, *arguments))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
        return None
    if process.exitcode == -signal.SIGKILL:
        sys.exit("tests were ended from outside, which says nothing about the mutant")
    return process.exitcode


def _quiet(target: Any, *arguments: Any) -> None:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        target(*arguments)


def measure(package: str, copy: Path, count: int, seed: int) -> dict[str, Any]:
    """Return how many of a random choice of mutants of a package its tests see."""
    folder, tests = copy / "src" / "tensorpress" / package, Path("tests", package)
    record, start = copy / "record.json", perf_counter()
    in_process(_record, tests, folder, record)
    code, seconds, lines = json.loads(record.read_text())
    if code:
        sys.exit(f"tests/{package} fail as they are")
    mutants = [m for file in sorted(folder.glob("*.py")) for m in mutants_of(file)]
    chosen = random.Random(f"{seed} {package}").sample(mutants, min(count, len(mutants)))
    results: Counter[str] = Counter()
    survivors = []
    for number, mutant in enumerate(chosen, 1):
        names = covering(mutant, lines, seconds)
        outcome = test_mutant(folder / mutant.file, mutant, names, seconds)
        results[outcome] += 1
        print(
            f"{package} {number}/{len(chosen)}: {mutant.file}:{mutant.line} {outcome}", flush=True
        )
        if outcome in ("survived", "not run"):
            before = (folder / mutant.file).read_bytes()
            where = f"src/tensorpress/{package}/{mutant.file}:{mutant.line}"
            survivors.append({"where": where, "result": outcome, "diff": diff(before, mutant)})
    seen = results["killed"] + results["timeout"]
    return {
        "mutants": len(mutants),
        "sampled": len(chosen),
        **{key: results[key] for key in RESULTS},
        "score": round(seen / len(chosen), 3),
        "minutes": round((perf_counter() - start) / 60, 1),
        "survivors": survivors,
    }


def mutants_of(file: Path) -> list[Mutant]:
    """Return all mutants of a file, those that change nothing left out."""
    source = file.read_bytes()
    return [
        mutant
        for mutant in Mutations(file.name, source).found
        if ast.dump(ast.parse(mutate(source, mutant))) != ast.dump(ast.parse(source))
    ]


def mutate(source: bytes, mutant: Mutant) -> bytes:
    """Return a source with the change."""
    return source[: mutant.start] + mutant.text.encode() + source[mutant.end :]


def covering(
    mutant: Mutant, lines: dict[str, dict[str, list[str]]], seconds: dict[str, float]
) -> list[str]:
    """Return the tests that run the line of a mutant, the fastest first."""
    of_file = lines.get(mutant.file, {})
    contexts = set(of_file.get(str(mutant.line), ()))
    if "" in contexts:  # in an import: whatever uses the file may see it
        contexts = {context for found in of_file.values() for context in found}
    names = [x for x in seconds if x in contexts or x.partition("::")[0] in contexts]
    return sorted(names, key=seconds.__getitem__)


def test_mutant(path: Path, mutant: Mutant, names: Sequence[str], seconds: dict[str, float]) -> str:
    """Put a mutant in the place of its file, run tests, and put the file back."""
    if not names:
        return "not run"
    source = path.read_bytes()
    path.write_bytes(mutate(source, mutant))
    for compiled in path.parents[1].rglob("__pycache__"):  # of files that call this one, too
        shutil.rmtree(compiled)
    try:
        code = in_process(_test, names, seconds=20 + 4 * sum(seconds[name] for name in names))
    finally:
        path.write_bytes(source)
    return "timeout" if code is None else "killed" if code else "survived"


def diff(source: bytes, mutant: Mutant) -> list[str]:
    """Return the lines that a mutant changes, before and after."""
    before, after = (x.decode().splitlines() for x in (source, mutate(source, mutant)))
    return [
        line
        for line in difflib.unified_diff(before, after, n=0, lineterm="")
        if line[0] in "+-" and line[:3] not in ("+++", "---")
    ]


@contextmanager
def working_copy() -> Iterator[Path]:
    """Yield a folder with the code and its tests, where they are imported from."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for folder in ("src", "tests"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", copy)
        os.chdir(copy)
        sys.path.insert(0, str(copy / "src"))
        sys.dont_write_bytecode = True
        os.environ |= {"PYTHONPATH": sys.path[0], "PYTHONDONTWRITEBYTECODE": "1"}
        os.environ |= {"OMP_NUM_THREADS": "1"}
        os.environ.pop("TENSORPRESS_DATA", None)  # tests on real data are not there everywhere
        yield copy


def main() -> None:
    """Test mutants of packages, and write how many were seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", action="append", choices=PACKAGES)
    parser.add_argument("--count", type=int, default=30, help="mutants of each package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    out = options.out.resolve()
    with working_copy() as copy:
        import hypothesis  # noqa: F401
        import torch  # noqa: F401  once, not in every process

        packages = {
            package: measure(package, copy, options.count, options.seed)
            for package in options.package or PACKAGES
        }
    if out.is_file():  # of the others, what was measured before
        packages = json.loads(out.read_text())["packages"] | packages
    total = {key: sum(found[key] for found in packages.values()) for key in ("sampled", *RESULTS)}
    score = round((total["killed"] + total["timeout"]) / total["sampled"], 3)
    content = {"seed": options.seed, **total, "score": score, "packages": packages}
    out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"{score:.1%} of {total['sampled']} mutants are seen: {out}")


if __name__ == "__main__":
    main()
