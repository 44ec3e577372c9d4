"""The real game beside its world: the same moment and the same keys, or none at all."""

from dataclasses import replace
from types import SimpleNamespace

import browsing
import numpy as np
import pytest
from browsing import at_step
from flax import nnx
from playground import Player, playing

from reverie.actions import ActionSpace
from reverie.data.arrays import ArrayDataset
from reverie.data.sources.square import SquareConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.quantise import VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.play import protocol
from reverie.play.beside import beside_of
from reverie.training.engine import Run
from reverie.training.record import Record, write_record
from reverie.world import WorldConfig, WorldModel
from reverie.world_folder import initial_frames, write_initial_frames

browser, open_page = browsing.browser, browsing.open_page
SOURCE = SquareConfig(count=40, frames=12)
SPEC = SOURCE.spec()
DATA = ArrayDataset.from_episodes(SPEC, SOURCE.episodes())
PLAYED = SimpleNamespace(config=SimpleNamespace(actions=SPEC.actions))  # all that is asked of a world here


def a_run(place, data=DATA):
    folder = place / "run" / "dynamics"
    folder.mkdir(parents=True)
    data.save(place / "run" / "data.npz")
    write_record(folder, Record(Run(objective=None, data="data.npz"), data.spec, data.fingerprint))
    return folder.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A server of an untrained world of the square, and its starts."""
    net = TransformerConfig(width=16, depth=1, heads=2, window=4)
    tokenizer = VQVAEConfig(frame=SPEC.frame, patch=8, encoder=net, decoder=net, quantiser=VQConfig(codes=16, width=8))
    dynamics = MaskGITConfig(codes=16, grid=(4, 4), actions=SPEC.actions, transformer=net, passes=2)
    config = WorldConfig(frame=SPEC.frame, actions=SPEC.actions, context=4, fps=SPEC.fps)
    world = WorldModel(config, tokenizer.make(nnx.Rngs(0)), None, dynamics.make(nnx.Rngs(1)))
    run = a_run(tmp_path_factory.mktemp("beside"))
    starts = initial_frames(run)
    with playing(world, starts=starts, beside=beside_of(run, world, starts)) as (address, _):
        yield address, starts


def test_a_player_sees_what_the_simulator_does_from_the_same_moment_on(place):
    address, starts = place
    simulator = SOURCE.make()
    assert starts
    with Player(address) as player:
        for start, (frames, _) in enumerate(starts):
            player.reset(start=start)
            kind, *_, real = player.hear()
            assert kind == protocol.REAL and real == frames[-1].tobytes()
            at = next(i for i, frame in enumerate(DATA.arrays["frames"]) if np.array_equal(frame, frames[-1]))
            state = DATA.arrays["states"][at]
            for action in (0, 1, 3):
                player.step(action)
                state, _, _ = simulator.step(state, action)
                kind, _, played, _, _, real = player.hear()
                assert (kind, played) == (protocol.REAL, action) and real == simulator.render(state).tobytes()


def test_a_picture_of_the_players_own_has_no_real_game(place):
    with Player(place[0]) as player:
        player.socket.send(bytes(np.prod(SPEC.frame)))
        assert player.hear() == {"type": "picture"}
        player.reset(start=protocol.PICTURE)
        player.step(0)
        player.step(1)


def test_there_is_one_only_where_the_simulator_draws_the_starts_and_takes_the_worlds_actions(tmp_path):
    run = a_run(tmp_path / "a")
    starts = initial_frames(run)
    assert beside_of(run, PLAYED, starts)
    write_initial_frames(run)
    (run / "data.npz").unlink()
    travelled = beside_of(run, PLAYED, initial_frames(run))
    assert travelled is not None and len(travelled.states) == len(starts), "states travel with the starts"
    latent = SimpleNamespace(config=SimpleNamespace(actions=ActionSpace("latent", 5)))
    assert beside_of(run, latent, initial_frames(run)) is None
    other = ArrayDataset(SPEC, DATA.lengths, {**DATA.arrays, "frames": 255 - DATA.arrays["frames"]})
    changed = a_run(tmp_path / "b", other)
    assert beside_of(changed, PLAYED, initial_frames(changed)) is None, "another version of the simulator"
    videos = ArrayDataset(replace(SPEC, simulator=None), DATA.lengths, DATA.arrays)
    assert beside_of(a_run(tmp_path / "c", videos), PLAYED, starts) is None


@browsing.needed
def test_both_pictures_are_seen_and_compared(open_page, place):
    page = open_page(place[0])
    assert page.locator("#beside").is_hidden()
    page.keyboard.press("c")
    page.keyboard.down("ArrowRight")
    at_step(page, 4)
    page.wait_for_function("() => document.getElementById('apart').textContent.includes('PSNR')")
    widths = page.eval_on_selector_all("#screen canvas", "all => all.map((one) => one.getBoundingClientRect().width)")
    assert widths[0] == widths[1] > 100
    page.keyboard.press("c")
    assert page.locator("#beside").is_hidden() and page.locator("#view").bounding_box()["width"] > widths[0]
