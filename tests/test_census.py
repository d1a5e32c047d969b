"""The table of refusals, repairs and warnings in reference/refusals.md is the code's, which has no other reasons."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

from boltzformer_monai.caveats import REPAIRS, WARNINGS
from boltzformer_monai.errors import REASONS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*(ROOT / "boltzformer_monai").rglob("*.py"), *(ROOT / "preprocessing").rglob("*.py")]


def _trees() -> list[ast.Module]:
    tables = ("errors.py", "caveats.py")
    return [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES if path.name not in tables]


def _calls(tree: ast.Module, name: str) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == name]


def _texts(node: ast.expr | None) -> set[str]:
    """The texts that an expression can be: itself, or either side of a choice."""
    if isinstance(node, ast.IfExp):
        return _texts(node.body) | _texts(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def test_the_page_is_up_to_date() -> None:
    census = runpy.run_path(str(ROOT / "docs" / "tools" / "census.py"))
    assert census["main"](["--check"]) == 0, "run python docs/tools/census.py"


def test_every_reason_of_a_refusal_is_in_the_table() -> None:
    given = set()
    for tree in _trees():
        for call in _calls(tree, "VolumeError"):
            given |= set().union(*(_texts(word.value) for word in call.keywords if word.arg == "reason"))
    assert len(given) > 20
    assert given <= set(REASONS)


def test_every_kind_of_caveat_is_in_the_table_and_none_in_vain() -> None:
    kinds, constants = set(), set()
    for tree in _trees():
        constants |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        for call in _calls(tree, "Caveat"):
            kinds |= _texts(call.args[0] if call.args else None)
    assert kinds
    assert kinds <= {*WARNINGS, *REPAIRS}
    assert {*WARNINGS, *REPAIRS, *REASONS} <= constants, "a row that nothing in the code gives"
