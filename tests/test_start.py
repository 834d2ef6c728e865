"""What is imported when: nothing heavy before it is needed, and every public name in the end."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tensorpress as tp
from tensorpress.cli.app import COMMANDS

HEAVY = ("torch", "numba", "matplotlib", "accelerate", "sklearn", "scipy", "huggingface_hub")


def run_python(*words: str) -> str:
    """Run Python in a process of its own, which must end well; return what it prints."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "calls",
    [[["--version"]], [["--help"], *([name, "--help"] for name in COMMANDS)]],
    ids=["version", "help"],
)
def test_version_and_help_of_every_command_need_no_torch(calls: list[list[str]]) -> None:
    code = f"""
import sys
from tensorpress.cli import main
for words in {calls}:
    sys.argv = ["tensorpress", *words]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code
    imports = [name for name in {HEAVY} if name in sys.modules]
    assert not imports, (words, imports)
"""
    out = run_python("-c", code)
    if calls == [["--version"]]:
        assert out == f"tensorpress {tp.__version__}\n"
    else:
        assert all(f"tensorpress {' '.join(words[:-1])}" in out for words in calls)


def test_import_tensorpress_waits_for_nothing() -> None:
    code = f"import sys, tensorpress\nprint([name for name in {HEAVY} if name in sys.modules])"
    assert run_python("-c", code) == "[]\n"


def test_functions_come_before_subpackages_of_their_name() -> None:
    code = """
import tensorpress.press.press, tensorpress.measure.cost, tensorpress.sensitivity.metrics
import tensorpress as tp
print(callable(tp.press), callable(tp.measure), callable(tp.sensitivity))
"""
    assert run_python("-c", code) == "True True True\n"


def test_every_public_name_is_there_and_is_what_type_checkers_see() -> None:
    tree = ast.parse(Path(tp.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    places = {alias.name: node.module for node in imports for alias in node.names}
    assert places == tp._HOMES
    assert len(tp.__all__) == len(set(tp.__all__))
    for name in tp.__all__:
        assert callable(getattr(tp, name))
    assert set(tp.__all__) <= set(dir(tp))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'tensorpress' has no attribute 'pres'"):
        _ = tp.pres  # type: ignore[attr-defined]


def test_verbosity_decides_what_is_shown() -> None:
    code = """
import logging, os, sys
from tensorpress.cli import main
sys.argv = ["tensorpress", *{words}, "list"]
try:
    main()
except SystemExit as stop:
    assert stop.code in (None, {code}), stop.code
print(os.environ.get("TENSORPRESS_PROGRESS"), logging.getLogger("tensorpress").level)
"""
    for words, status, shown in (([], 0, "0 20"), (["-q"], 0, "0 0"), (["-v"], 0, "0 10")):
        out = run_python("-c", code.format(words=words, code=status))
        assert out.splitlines()[-1] == shown
    assert run_python("-c", code.format(words=["-q", "-v"], code=2)).splitlines()[-1] == "None 0"


def test_after_an_interrupt_a_line_says_how_to_go_on() -> None:
    code = """
import sys
import tensorpress.cli.{module} as module
def interrupt() -> None:
    raise KeyboardInterrupt
module.{function} = interrupt
from tensorpress.cli import main
sys.argv = ["tensorpress", {name!r}]
main()
"""
    for name, place, expected in (
        ("demo", "run:demo", "interrupted: repeat the command to continue"),
        ("list", "list:list_command", "interrupted"),
    ):
        module, function = place.split(":")
        text = code.format(module=module, function=function, name=name)
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
        assert done.returncode == 130
        assert done.stderr == f"error: {expected}\n"
