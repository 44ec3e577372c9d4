"""People play a real game: what they keep becomes a store that trains, what they discard is gone."""

from typing import Any

import numpy as np
import pytest
from playground import Player, recording

from reverie import cli
from reverie.data.sources.platformer import PlatformerConfig
from reverie.data.sources.square import SquareConfig
from reverie.data.sources.videos import VideosConfig
from reverie.data.store import open_dataset
from reverie.data.takes import Take, Takes, game_of
from reverie.errors import ReverieError
from reverie.play import protocol

GAME = PlatformerConfig(tiles=6, tile=8)


def played(source, actions, seed: int = 3) -> Take:
    game = game_of(source)
    take = Take(game.spec, seed, game.reset(seed))
    for action in actions:
        take.add(action, game.step(action))
    return take


@pytest.mark.parametrize(
    "source", [GAME, SquareConfig(), SquareConfig(actions="continuous")], ids=lambda s: s.spec().source
)
def test_a_take_is_what_the_simulator_says(source, tmp_path):
    space = source.spec().actions
    actions = [space.nth(index % space.count) for index in range(20)]
    takes = Takes(source.spec(), tmp_path / "out")
    takes.keep(played(source, actions))
    dataset, simulator = open_dataset(takes.write(val=0)), source.make()
    assert dataset.lengths.tolist() == [21] and dataset.spec == source.spec()
    found = dataset.read(0, 0, 21)
    state = simulator.reset(3)
    for t in range(21):
        if t:
            state, reward, _ = simulator.step(state, found["actions"][t] if space.shape else int(found["actions"][t]))
            assert found["rewards"][t] == np.float32(reward) and np.array_equal(found["actions"][t], actions[t - 1])
        assert (found["states"][t] == state).all() and (found["frames"][t] == simulator.render(state)).all()


def test_takes_continue_and_a_deleted_file_is_a_deleted_take(tmp_path):
    out = tmp_path / "out"
    takes = Takes(GAME.spec(), out)
    with pytest.raises(ReverieError, match="no take was kept"):
        takes.write()
    with pytest.raises(ReverieError, match="Nothing was played yet"):
        takes.keep(played(GAME, []))
    for count in (4, 5):
        takes.keep(played(GAME, [1] * count))
    assert open_dataset(takes.write(val=0)).lengths.tolist() == [5, 6]
    takes.files()[0].unlink()
    again = Takes(GAME.spec(), out)
    assert again.keep(played(GAME, [2] * 6)).name == "take-00002.npz"
    assert open_dataset(again.write(val=0)).lengths.tolist() == [6, 7]
    with pytest.raises(ReverieError, match="is of another game"):
        Takes(SquareConfig().spec(), out)
    (tmp_path / "other").mkdir()
    with pytest.raises(ReverieError, match="exists and was not recorded by playing"):
        Takes(GAME.spec(), tmp_path / "other")
    with pytest.raises(ReverieError, match="there is no game to play"):
        game_of(VideosConfig(path="x"))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["record", "platfromer", "out"], "there is no source 'platfromer'. Did you mean 'platformer'?"),
        (["record", "images", "out", "--path", "x"], "there is no game to play"),
        (["record", "NoSuchGame-v3", "out"], "there is no environment 'NoSuchGame-v3'"),
        (["record", "platformer", "out", "--tiles", "1"], "the platformer needs tiles"),
    ],
)
def test_what_cannot_be_played_is_one_line(words, why, capsys, tmp_path):
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert why in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


class Short(PlatformerConfig):
    """A game that ends after three steps."""

    def as_game(self):
        game = game_of(GAME)
        step, count = game.step, iter(range(100))
        game.step = lambda action: step(action)._replace(over=next(count) % 3 == 2)
        return game


def test_over_the_socket_only_what_is_kept_stays(tmp_path):
    real, server = recording(Short(), tmp_path / "out")
    with server as (address, _), Player(address) as player:
        hello: Any = player.hello
        assert hello["recorder"] and hello["actions"]["names"] == list(GAME.spec().actions.names)

        def heard() -> Any:
            return player.hear()

        def take(**fields):
            message = heard()
            assert message["type"] == "take" and {name: message[name] for name in fields} == fields, message

        def reset(seed):
            player.socket.send(bytes(np.prod(real.config.frame)))
            assert heard()["type"] == "picture"
            player.reset(seed, -1)
            take(frames=1, over=False)

        def step(**fields):
            player.say("step", action=2, temperature=0)
            assert heard()[0] == protocol.FRAME
            take(**fields)

        reset(1)
        step(frames=2, over=False)
        reset(2)  # discards
        step(frames=2)
        step(frames=3)
        player.say("keep")
        take(frames=0, kept=1)
        player.say("keep")
        assert "kept already" in heard()["text"]
        player.say("step", action=2, temperature=0)
        assert "begin another" in heard()["text"]
        reset(5)
        for frames in (2, 3, 4):
            step(frames=frames, over=frames == 4)
        player.say("step", action=2, temperature=0)
        assert "The game is over" in heard()["text"]
        player.say("keep")
        take(frames=0, kept=2)
    dataset = open_dataset(real.takes.write(val=0))
    assert dataset.lengths.tolist() == [3, 4]
    assert [source.partition(", ")[2] for source in dataset.sources] == ["level 2", "level 5"]  # pyright: ignore
