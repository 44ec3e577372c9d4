"""A thousand mutations of a world's folder (see ``mutations``): ``make soak TEST_ARGS="-k mutations"``, minutes."""

import pytest
from golden import unpack
from mutations import run_mutations, trained_on

pytestmark = pytest.mark.soak


def test_a_thousand_mutations(tmp_path, capfd):
    world = trained_on(unpack(tmp_path / "world"))
    verdicts = run_mutations(world, tmp_path / "aside", 1000, 1, lambda: capfd.readouterr().err)
    with capfd.disabled():
        print(dict(verdicts))
    assert not [verdict for verdict in verdicts if verdict.startswith("wrong")]
