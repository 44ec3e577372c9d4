"""The oracle arm: PMPO and REINFORCE where the world is exact, by the code that learned worlds use. Two minutes.

Nothing that an agent does in a learned world means anything unless this works. The best policy has -54.6.
"""

from dataclasses import replace

import pytest
from exact_square import HEADS, ExactBehaviour, play, run

from reverie.evaluation.environment import judge
from reverie.nn.returns import PMPO, Reinforce
from reverie.training.agents import ImaginationObjective
from reverie.training.engine import fit

STEPS = 1000
ARMS = {
    "pmpo": ImaginationObjective(learner=PMPO(), context=4, critic_steps=100),
    "reinforce": ImaginationObjective(learner=Reinforce(), context=4, critic_steps=100),
}
FAIL = {
    "huge KL weight": ImaginationObjective(learner=PMPO(beta=30.0), context=4, critic_steps=100),
}


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    heads = replace(HEADS, ahead=8)
    fit(run(ExactBehaviour(agent=heads), steps=1500, batch=64, length=16), folder / "agent", dataset=play(2000))
    return folder


@pytest.mark.soak
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", [*ARMS, *FAIL])
def test_the_oracle_arm(cloned, tmp_path, name):
    (tmp_path / "agent").symlink_to(cloned / "agent")
    objective = (ARMS | FAIL)[name]
    steps = STEPS if name in ARMS else 200
    fit(run(objective, steps=steps, batch=256, length=20, log_every=50), tmp_path / "policy", dataset=play(2000))
    numbers = judge(tmp_path)
    print(f"\n{name}:", {key: round(value["mean"], 1) for key, value in numbers.items() if isinstance(value, dict)})
    better = numbers["return_rl"]["mean"] - numbers["return_bc"]["mean"]
    assert numbers["return_rl"]["mean"] >= -60 if name in ARMS else abs(better) < 15
