"""The shape of the code: imports run one way and not deep. `python tests/test_architecture.py` prints the floors."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
GRAPH = grimp.build_graph("covidjax", "covidjax_cli", cache_dir=None)
"""Imports between modules, also those within functions and those for type checkers."""

MOST_FLOORS, MOST_LINES, MOST_FUNCTION_LINES = 10, 350, 60


OPEN: list[str] = []
"""Modules whose floors are being computed."""


@cache
def floor(module: str) -> int:
    """One more than the highest floor of the modules that it imports."""
    assert module not in OPEN, " imports ".join([*OPEN[OPEN.index(module) :], module])
    OPEN.append(module)
    below = [floor(other) for other in sorted(GRAPH.find_modules_directly_imported_by(module))]
    OPEN.remove(module)
    return 1 + max(below, default=0)


def sources() -> list[Path]:
    return [file for folder in ("covidjax", "cli") for file in sorted((ROOT / folder).rglob("*.py"))]


def test_imports_run_one_way_and_not_deep():
    assert max(floor(module) for module in GRAPH.modules) <= MOST_FLOORS


def test_no_module_imports_the_whole_package():
    assert GRAPH.find_modules_that_directly_import("covidjax") == set()


def test_modules_and_functions_are_short():
    for file in sources():
        text = file.read_text()
        assert text.count("\n") <= MOST_LINES, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= MOST_FUNCTION_LINES or is_command(node), f"{file}: {node.name} has {length} lines"


def is_command(node: ast.FunctionDef) -> bool:
    """A command's many options are its arguments."""
    return any("command" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_only_checkpoint_knows_orbax():
    for file in sources():
        assert file.name == "checkpoint.py" or "orbax" not in file.read_text().replace("orbax-checkpoint", ""), file


if __name__ == "__main__":
    for module in sorted(GRAPH.modules, key=lambda module: (floor(module), module)):
        print(f"{floor(module):2} {module}")
