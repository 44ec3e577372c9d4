"""Configs survive JSON, refuse what does not fit, and never run what a file names; actions and error lines."""

import dataclasses
import importlib
import json
import pkgutil
import random

import pytest

import reverie
from reverie import config
from reverie.actions import CODES, START, UNLABELLED, ActionSpace
from reverie.data.episode import Spec
from reverie.data.sources.arrays import ArraysConfig
from reverie.data.sources.videos import VideosConfig
from reverie.errors import ReverieError, did_you_mean
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.nn.transformer import TransformerConfig
from reverie.training.engine import Run
from reverie.training.objectives import DynamicsObjective

SPACE = ActionSpace("discrete", 3, ("left", "jump", "right"), ("ArrowLeft", " ", "ArrowRight"))


def through_json(value):
    return config.from_json(json.loads(json.dumps(config.to_json(value))))


def test_json_round_trip_keeps_class_and_values():
    for value in (
        SPACE,
        ActionSpace(),
        TransformerConfig(),
        (SPACE, 1, None, "x", 0.5, True),
        {"a": SPACE, "b": (1, 2)},
    ):
        again = through_json(value)
        assert again == value
        assert type(again) is type(value)


FIRST = [], ["path"], ["objective"], ["tokenizer"], ["lam"], ["dynamics"]  # of a source, a run and its objectives


def test_configs_are_built_by_name():
    """By position a run of 2 steps once was one of 1000 steps of 2 frames, and no test saw it.

    Only what a config is about may come first without a name, as programs of others do it: ``VideosConfig(path)``.
    """
    found = set()
    for module in pkgutil.walk_packages(reverie.__path__, "reverie."):
        for name, made in vars(importlib.import_module(module.name)).items():
            if dataclasses.is_dataclass(made) and name.endswith(("Config", "Objective", "Run", "Recipe")):
                by_position = [f.name for f in dataclasses.fields(made) if not f.kw_only]
                assert by_position in FIRST, f"{name} takes {by_position} by position"
                found.add(name)
    assert {"Run", "OptimConfig", "TransformerConfig", "ShortcutConfig", "VideosConfig", "DynamicsObjective"} <= found
    assert VideosConfig("clips").path == ArraysConfig("clips").path == "clips"
    assert Run(DynamicsObjective(MaskGITConfig())) == Run(objective=DynamicsObjective(dynamics=MaskGITConfig()))
    with pytest.raises(TypeError, match="positional"):
        Run(DynamicsObjective(), "data")  # type: ignore[misc]


def test_json_holds_plain_data_only():
    class Odd:
        pass

    for value in (Odd(), {1, 2}, b"bytes", lambda: 0):
        with pytest.raises(TypeError, match="plain values only"):
            config.to_json((value,))


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "reverie_evil:Config",
        "reverie.config:json.loads",
        "reverie.config:to_json",  # ours, but no dataclass
        "reverie.errors:ReverieError",
        "reverie.nowhere:Config",
        "subprocess:Popen",
        "orbax.checkpoint:CheckpointManagerOptions",  # a dataclass, and not ours
        "",
        7,
    ],
)
def test_a_config_file_cannot_name_what_is_not_a_config(name):
    with pytest.raises(ReverieError, match="not a config"):
        config.from_json({config.CLASS: name, "args": "true"})


def test_unknown_and_unfitting_fields_are_refused_with_their_name():
    data = config.to_json(SPACE)
    with pytest.raises(ReverieError, match=r"no field 'siez'\. Did you mean 'size'\?"):
        config.from_json(data | {"siez": 3})
    for field, value in {"size": "3", "kind": "analog", "names": [1, 2, 3], "keys": "abc"}.items():
        with pytest.raises(ReverieError, match=f"ActionSpace.{field} cannot be"):
            config.from_json(data | {field: value})
    with pytest.raises(ReverieError, match="size cannot be True"):
        config.from_json(data | {"size": True})
    with pytest.raises(ReverieError, match="ActionSpace cannot be read: .* 4"):
        config.from_json(data | {"size": 4})  # fits by itself, but there are three names


def test_a_missing_field_is_named():
    spec = config.to_json(Spec((8, 8, 3), SPACE, 10.0, "test"))
    del spec["fps"]
    with pytest.raises(ReverieError, match="Spec cannot be read: .*'fps'"):
        config.from_json(spec)


def test_any_broken_json_ends_in_one_clear_line():
    """Whatever takes the place of any value of a good file: the config comes out right, or a ReverieError does."""
    rng = random.Random(0)
    good = config.to_json({"net": TransformerConfig(), "actions": SPACE})
    wrong = [
        None,
        [],
        {},
        "x",
        -1,
        10**400,
        1e300,
        True,
        [[1]],
        {"class": "os:system"},
        {"class": "reverie.actions:ActionSpace"},
    ]
    for _ in range(400):
        data = json.loads(json.dumps(good))
        part = data[rng.choice(["net", "actions"])]
        part[rng.choice([*part, "extra"])] = rng.choice(wrong)
        try:
            value = config.from_json(data)
        except ReverieError as error:
            assert "\n" not in str(error)
        else:
            assert through_json(value) == value


def test_replace_reaches_nested_fields_and_leaves_the_rest():
    @dataclasses.dataclass(frozen=True)
    class Outer:
        space: ActionSpace = SPACE
        n: int = 1

    outer = Outer()
    new = config.replace(outer, **{"space.names": ("a", "b", "c"), "n": 2})
    assert (new.space.names, new.space.keys, new.n) == (("a", "b", "c"), SPACE.keys, 2)
    assert outer == Outer()
    with pytest.raises(ReverieError, match=r"no field 'spcae'\. Did you mean 'space'\?"):
        config.replace(outer, **{"spcae.names": ()})


def test_flatten_names_every_value_once():
    flat = config.flatten({"a": SPACE, "b": (SPACE, ActionSpace())})
    assert flat["a.size"] == flat["b.0.size"] == 3
    assert flat["b.1.size"] == 0
    assert all(not isinstance(v, dict) for v in flat.values())
    assert config.flatten(SPACE)["class"] == "reverie.actions:ActionSpace"


def test_action_spaces_refuse_what_contradicts_itself():
    for wrong in (
        ("none", 2),
        ("discrete", 0),
        ("latent", -1),
        ("discrete", 2, ("one",)),
        ("discrete", 1, (), ("a", "b")),
    ):
        with pytest.raises(ValueError, match=r"actions|names"):
            ActionSpace(*wrong)
    assert {START + CODES, UNLABELLED + CODES} == {0, 1}  # rows of an embedding: codes first, then the actions


def test_did_you_mean():
    assert did_you_mean("lern", ["learn", "play"]) == " Did you mean 'learn'?"
    assert did_you_mean("xyz", ["learn", "play"]) == " Choose from: learn, play."
    assert did_you_mean("x", []) == ""
