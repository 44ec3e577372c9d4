"""The committed list of mutants applies to the code as it is, and has one for every promise. `make mutants` runs it."""

import ast
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
    "same key, same dream",
    "sharded equals single",
    "remat equals plain",
    "exact resume",
    "every preset trains and resumes",
    "refactors move no bit",
    "safe data",
}


def test_every_promise_has_a_mutant():
    assert len(MUTANTS) >= 40
    assert {m.promise for m in MUTANTS} >= PROMISES
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file}-{m.promise}".replace(" ", "-"))
def test_a_mutant_applies_and_its_test_exists(mutant):
    changed = mutant.source()
    if mutant.file.endswith(".py"):
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse((ROOT / mutant.file).read_text("utf8")))
    for word in mutant.test.split():
        path, _, name = word.partition("::")
        assert re.search(rf"^def {name or 'test_'}", (ROOT / path).read_text("utf8"), re.MULTILINE), word
