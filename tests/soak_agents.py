"""The oracle arm: PMPO and REINFORCE where the world is exact, by the code that learned worlds use; and what must fail.

Nothing that an agent does in a learned world means anything unless this works. Ten minutes. On the square the best
policy has -54.6; on the platformer it takes all coins of every level within 16 steps.
"""

import os
from dataclasses import dataclass, replace

import exact_platformer
import exact_square
import jax.numpy as jnp
import pytest
from exact_square import run

from benchmarks.agents import add, rows_of
from reverie import config
from reverie.data.arrays import ArrayDataset
from reverie.evaluation.environment import judge
from reverie.nn.returns import PMPO, Reinforce
from reverie.training.agents import ImaginationObjective
from reverie.training.engine import fit

config.packages.add(__name__)
SQUARE = ImaginationObjective(context=4, critic_steps=100)
LEARNERS = {"pmpo": PMPO(), "reinforce": Reinforce()}


def platformer_play() -> ArrayDataset:
    source = exact_platformer.SeenConfig(count=1200, play="mixed", goal="coins")
    return ArrayDataset.from_episodes(source.spec(), source.episodes())


@dataclass(frozen=True, kw_only=True)
class Flipped(PMPO):
    """Makes bad actions more likely."""

    def terms(self, log_prob, advantages, kl, entropy, weights):
        return super().terms(log_prob, -advantages - 1e-12, kl, entropy, weights)


def clone(folder, behaviour, data, steps):
    fit(run(behaviour, steps=steps, batch=64, length=8, log_every=100), folder / "agent", dataset=data)
    return folder


def learned(cloned, folder, objective, data, steps, length):
    (folder / "agent").symlink_to(cloned / "agent")
    fit(run(objective, steps=steps, batch=256, length=length, log_every=50), folder / "policy", dataset=data)


def numbers_of(folder, name):
    """Measure a run; with REVERIE_RESULTS in the environment, its rows go into docs/agents/results.json."""
    numbers = judge(folder, plan=0)
    if "REVERIE_RESULTS" in os.environ:
        add(rows_of(folder, numbers, f"exact, {name}"))
    rows = {key: value for key, value in numbers.items() if isinstance(value, dict)}
    print(f"\n{name}:", {key: [round(value[of], 3) for of in value if of != "episodes"] for key, value in rows.items()})
    return {key.removeprefix("return_"): value for key, value in rows.items()}


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    data = exact_square.play(2000)
    behaviour = exact_square.ExactBehaviour(agent=replace(exact_square.HEADS, ahead=8))
    return clone(tmp_path_factory.mktemp("square"), behaviour, data, 1500), data


@pytest.fixture(scope="module")
def platformer(tmp_path_factory):
    data = platformer_play()
    return clone(tmp_path_factory.mktemp("platformer"), exact_platformer.ExactBehaviour(), data, 1000), data


@pytest.mark.soak
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("learner", LEARNERS)
def test_the_oracle_arm_of_the_square(square, tmp_path, learner):
    cloned, data = square
    learned(cloned, tmp_path, replace(SQUARE, learner=LEARNERS[learner]), data, 1000, 20)
    assert numbers_of(tmp_path, learner)["rl"]["mean"] >= -60


@pytest.mark.soak
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("learner", LEARNERS)
def test_the_oracle_arm_of_the_platformer(platformer, tmp_path, learner):
    cloned, data = platformer
    objective = ImaginationObjective(learner=LEARNERS[learner], context=4, critic_steps=100, gamma=0.95)
    learned(cloned, tmp_path, objective, data, 600, 8)
    found = numbers_of(tmp_path, learner)
    assert found["rl"]["success"] >= 0.85 > 3 * found["bc"]["success"]


def blind(original):
    """Features that know the last action, and nothing of the picture."""

    def observe(self, state, latents, actions):
        state, h = original(self, state, latents, actions)
        return state, h.at[..., :3].set(0.0)

    return observe


def shuffled(original):
    """What is done in one rollout happens in another."""

    def imagine(self, state, actions, key, temperature=None):
        return original(self, state, jnp.roll(actions, 1, axis=0), key, temperature)

    return imagine


@pytest.mark.soak
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("wrong", ["flipped advantage", "huge KL weight", "shuffled actions", "blind features"])
def test_what_must_fail_fails(square, tmp_path, monkeypatch, wrong):
    """No better than cloning, or than the data; without the mistake, 200 updates reach about -76."""
    (cloned, data), exact = square, exact_square.Exact
    learners = {"flipped advantage": Flipped(), "huge KL weight": PMPO(beta=30.0)}
    if wrong == "blind features":
        monkeypatch.setattr(exact, "observe", blind(exact.observe))
        cloned = clone(tmp_path / "blind", exact_square.ExactBehaviour(), data, 300)
    with monkeypatch.context() as patch:
        if wrong == "shuffled actions":
            patch.setattr(exact, "imagine", shuffled(exact.imagine))
        learned(cloned, tmp_path, replace(SQUARE, learner=learners.get(wrong, PMPO())), data, 200, 20)
    found = numbers_of(tmp_path, wrong)
    gain = found["rl"]["mean"] - found["bc"]["mean"]
    assert gain < -60 if wrong == "flipped advantage" else abs(gain) < 15 if wrong == "huge KL weight" else gain < 40
