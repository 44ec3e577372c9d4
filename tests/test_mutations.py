"""Whatever breaks in a world's folder: what loads is what was saved, or one line says that it is not."""

import pytest
from golden import unpack
from mutations import run_mutations, trained_on


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small world in today's format."""
    return trained_on(unpack(tmp_path_factory.mktemp("whole") / "world"))


def test_mutations_are_reported_or_harmless(world, tmp_path, capfd):
    verdicts = run_mutations(world, tmp_path / "aside", 40, 0, lambda: capfd.readouterr().err)
    assert not [verdict for verdict in verdicts if verdict.startswith("wrong")], verdicts
    assert verdicts["reported"] + verdicts["refused"] > 10
