"""Two tasks on one exact world, in the real environment. Minutes: `make soak`."""

import json

import pytest
from exact_square import run
from test_tasks import both, cloned

from benchmarks.agents import rows_of
from reverie.cli import main
from reverie.data.sources.square import GOALS
from reverie.training.agents import ImaginationObjective
from reverie.training.engine import fit


@pytest.mark.soak
def test_each_policy_beats_that_of_the_other_id_at_its_task_cloned_and_learned_in_imagination(tmp_path, capsys):
    """The bar of two tasks on one world, in the real environment, by the command."""
    folder = cloned(tmp_path, both(200), steps=300)
    imagine = ImaginationObjective(horizon=8, context=2, gamma=0.9, critic_steps=50)
    fit(run(imagine, steps=200, batch=64, rate=2e-3), folder / "policy", dataset=both(200), progress=False)
    (folder / "data").symlink_to("starts.npz")
    assert main(["eval", str(folder), "--env", "--episodes", "128", "--plan", "4", "--json"]) == 0
    printed = capsys.readouterr()
    assert "corner: return_rl_other" in printed.err
    tasks = json.loads(printed.out)["tasks"]
    assert set(tasks) == set(GOALS) and len(rows_of(folder, {"tasks": tasks}, "exact")) == 26
    for task, found in tasks.items():
        with capsys.disabled():
            print(task, {name: round(each["mean"], 1) for name, each in found.items() if isinstance(each, dict)})
        for name in ("bc", "rl"):
            own, other = found[f"return_{name}"], found[f"return_{name}_other"]
            assert own["low"] > other["high"], (name, own, other)
        assert found["return_rl"]["low"] > found["return_bc"]["high"], found
