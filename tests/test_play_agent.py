"""An agent on the page: it changes no frame, says what it would do, and plays until a key is pressed."""

import json
from typing import Any

import browsing
import numpy as np
import pytest
from browsing import at_step, says
from flax import nnx
from playground import FRAME, Player, playing, some_starts, tiny_world

from reverie.actions import ActionSpace
from reverie.models.agent import AgentConfig
from reverie.nn.heads import HeadConfig
from reverie.play.agent import AgentSeats, AgentSession, agent_of
from reverie.world import Session
from reverie.world_folder import agents_in

browser, open_page = browsing.browser, browsing.open_page
HEADS = AgentConfig(head=HeadConfig(width=8, depth=1), ahead=1)


def an_agent(*actions):
    """An agent whose heads have random weights: its policy prefers something, and expects rewards."""
    agent, rng = HEADS.make(tiny_world(*actions), nnx.Rngs(0)), np.random.default_rng(0)
    for head in (agent.policy, agent.reward, agent.ends):
        for _, weight in nnx.to_flat_state(nnx.state(head, nnx.Param)):
            weight[...] = rng.normal(size=weight.shape).astype(np.float32)
    return agent


@pytest.fixture(scope="module")
def agent():
    return an_agent()


@pytest.fixture(scope="module")
def place(agent):
    with playing(agent.world, seats=lambda *given: AgentSeats(agent, *given)) as place:
        yield place


def test_frames_are_the_same_and_advice_depends_on_them(agent):
    watched, plain = AgentSession(agent, seed=3, temperature=1.0), Session(agent.world, seed=3, temperature=1.0)
    start, heard = some_starts()[1], []
    assert np.array_equal(watched.reset(*start), plain.reset(*start))
    for t in range(6):
        heard.append(watched.advice)
        assert 0 <= heard[-1]["action"] < 4 and sum(heard[-1]["shares"]) == pytest.approx(1, abs=1e-3)
        assert np.array_equal(watched.step(t % 4), plain.step(t % 4))
    assert len({str(each["shares"]) for each in heard}) == 6 and len({each["reward"] for each in heard}) == 6
    watched.reset(*start)
    assert watched.advice == heard[0], "the same moment, the same advice"


def test_an_action_of_several_continuous_parts_is_one_that_the_page_can_play():
    space = ActionSpace("continuous", 2, low=(-1.0, 0.0), high=(1.0, 4.0))
    session = AgentSession(an_agent(space))
    session.reset(np.zeros((1, *FRAME), np.uint8))
    advice = session.advice
    session.step(space.nth(advice["action"]))
    assert len(advice["shares"]) == 4 and advice["shares"][0] + advice["shares"][1] == pytest.approx(1, abs=1e-3)


def test_a_player_hears_the_advice_after_every_frame(place):
    with Player(place[0]) as player:
        hello: Any = player.hello
        assert hello["agent"] is True
        player.reset()
        for _ in range(3):
            advice: Any = player.hear()
            assert advice["type"] == "agent" and advice["id"] == player.id and json.dumps(advice)
            assert {"action", "shares", "reward", "goes_on"} <= set(advice)
            player.step(advice["action"])


@browsing.needed
def test_the_agent_plays_until_a_key_is_pressed_and_a_link_replays_it(open_page, place):
    page = open_page(place[0])
    page.keyboard.press("g")
    at_step(page, 6)
    assert page.get_attribute("#hand", "aria-pressed") == "true" and "agent plays" in page.inner_text("#badge")
    shares = page.eval_on_selector_all(
        "#pad button", "all => all.map(b => Number(b.style.getPropertyValue('--share')))"
    )
    assert sum(shares) == pytest.approx(1, abs=1e-3) and "reward" in page.inner_text("#says")
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#hand", "aria-pressed") == "false"
    page.keyboard.press("t")
    page.click("#share")
    says(open_page(page.url), "badge", "The same session, bit for bit")


def test_an_agent_that_has_no_checkpoint_yet_is_none(tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "run.json").write_text("{}")
    assert agent_of(tmp_path) is None
    (tmp_path / "agent" / "checkpoints" / "3").mkdir(parents=True)
    assert agents_in(tmp_path) == [tmp_path / "agent"], "play and evaluation take it until the policy has learned"
