"""The committed list of mutants applies to the code as it is, and has one for every promise. `make mutants` runs it."""

import ast
import builtins
import re

import pytest
from mutants import ROOT, mutants

MUTANTS = mutants()
PROMISES = {
    "no leak from the future",
    "everything of the past is seen",
    "cached equals uncached",
    "context is never overwritten",
    "brightness survives",
    "frozen means frozen",
    "rows are independent",
    "same key, same frames",
    "sharded equals single",
    "remat equals plain",
    "exact resume",
    "every preset trains and resumes",
    "refactors move no bit",
    "safe data",
    "agents learn from what happened",
}


def test_every_promise_has_a_mutant():
    assert len(MUTANTS) >= 40
    assert {m.promise for m in MUTANTS} >= PROMISES
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)


def unbound(source):
    """Return the names that a module uses and never binds: imports, definitions, arguments, assignments, builtins."""
    nodes = list(ast.walk(ast.parse(source)))
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {(node.asname or node.name).partition(".")[0] for node in nodes if isinstance(node, ast.alias)}
    bound |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    return used - bound - set(dir(builtins))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file}-{m.promise}".replace(" ", "-"))
def test_a_mutant_applies_and_its_test_exists(mutant):
    changed = mutant.source()
    if mutant.file.endswith(".py"):
        old = (ROOT / mutant.file).read_text("utf8")
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(old))
        assert unbound(changed) <= unbound(old), "an unknown name fails every test, and proves nothing of this one"
    for word in mutant.test.split():
        path, _, name = word.partition("::")
        assert re.search(rf"^def {name or 'test_'}", (ROOT / path).read_text("utf8"), re.MULTILINE), word


def test_every_slow_test_is_there():
    lines = (ROOT / "tests" / "slow.txt").read_text("utf8").splitlines()
    assert len(set(lines)) == len(lines)
    for line in lines:
        file, _, name = line.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text("utf8"), line
