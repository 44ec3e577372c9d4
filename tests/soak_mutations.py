"""A thousand mutations of a world's folder (see ``mutations``): ``make soak TEST_ARGS="-k mutations"``, minutes."""

import pytest
from golden import unpack
from mutations import newest, run_mutations, trained_on

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("what", ["a world", "its newest checkpoints"])
def test_a_thousand_mutations(what, tmp_path, capfd):
    world = trained_on(unpack(tmp_path / "world"))
    files = newest(world) if what == "its newest checkpoints" else None
    verdicts = run_mutations(world, tmp_path / "aside", 1000, 1, lambda: capfd.readouterr().err, files)
    with capfd.disabled():
        print(f"{what}: {dict(verdicts)}")
    assert not [verdict for verdict in verdicts if verdict.startswith("wrong")]
    assert files is None or verdicts.keys() <= {"reported", "unchanged"}
