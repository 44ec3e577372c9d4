"""A config's fields are flags: of every type that configs have, each with the text beside it."""

import argparse
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import pytest

from reverie.config import FROM_DATA
from reverie.errors import ReverieError
from reverie.flags import add, changed, flags_of, settings, texts


@dataclass(frozen=True)
class Inner:
    """A part."""

    depth: int = 2  # layers, 10 % of them cheap
    # how it moves:
    # in steps
    kind: Literal["walk", "run"] = "walk"
    size: tuple[int, int] = field(default=(4, 4), metadata=FROM_DATA)

    def __post_init__(self):
        if self.depth < 1:
            raise ValueError(f"depth {self.depth} is below 1")


@dataclass(frozen=True, kw_only=True)
class Outer(Inner):
    """A whole."""

    # Nothing of this belongs to a field.

    name: str  # what it is called
    _: KW_ONLY
    part: Inner = Inner(3)
    parts: dict[str, Inner] = field(default_factory=lambda: {"first": Inner()})
    rate: float = 0.5  # so fast
    on: bool = True  # whether ``on``
    pair: tuple[float, float] = (1.0, 2.0)  # two
    many: tuple[Literal["a", "b"], ...] = ()  # some of few
    perhaps: int | None = None  # or not
    both: tuple[int, int] | None = None  # or neither
    other: str | Inner | None = None  # a folder, or a part
    filled: str | Inner | None = Inner(5)
    anything: Any = Inner(6)
    silent: int = 0


def parsed(config: Any, *words: str) -> Any:
    parser = argparse.ArgumentParser()
    for flag in flags_of(config):
        add(parser, flag, flag.text)
    return changed(config, settings(parser.parse_args(words)))


def test_every_type_is_read_as_it_is_written():
    one = Outer(name="x")
    names = [flag.path for flag in flags_of(one)]
    assert names == [
        "depth", "kind", "name", "part.depth", "part.kind", "parts.first.depth", "parts.first.kind", "rate", "on",
        "pair", "many", "perhaps", "both", "other", "filled.depth", "filled.kind", "anything.depth", "anything.kind",
        "silent",
    ]  # fmt: skip
    assert parsed(one) == one
    words = (
        "--name y --depth 7 --kind run --part.depth 8 --parts.first.kind run --rate 1e-3 --on false --pair 3 -4.5 "
        "--many a b --perhaps 3 --both 5 6 --other ../there --filled.depth 9 --anything.kind run"
    )
    assert parsed(one, *words.split()) == Outer(
        7, "run", name="y", part=Inner(8), parts={"first": Inner(2, "run")}, rate=1e-3, on=False, pair=(3.0, -4.5),
        many=("a", "b"), perhaps=3, both=(5, 6), other="../there", filled=Inner(9), anything=Inner(6, "run"),
    )  # fmt: skip
    assert parsed(Outer(name="x", perhaps=3, other="y"), "--perhaps", "None", "--other", "None") == one
    assert parsed(Outer(name="x", many=("a",)), "--many") == one


def test_a_class_is_made_with_what_it_needs(capsys):
    assert parsed(Outer, "--name", "z", "--part.depth", "4") == Outer(name="z", part=Inner(4))
    with pytest.raises(SystemExit):
        parsed(Outer)
    assert "required: --name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--depth 1.5", "'1.5' is not a whole number"),
        ("--rate fast", "'fast' is not a number"),
        ("--on maybe", "there is no 'maybe'. Choose from: False, True."),
        ("--kind rnu", "there is no 'rnu'. Did you mean 'run'?"),
        ("--many a c", "there is no 'c'"),
        ("--perhaps so", "'so' is not a whole number"),
        ("--pair 1", "expected 2 arguments"),
        ("--size 2 2", "unrecognized arguments: --size"),
    ],
)
def test_a_wrong_value_says_what_it_should_be(capsys, words, says):
    with pytest.raises(SystemExit):
        parsed(Outer(name="x"), *words.split())
    assert says in capsys.readouterr().err


def test_a_value_that_its_config_refuses_is_one_line():
    with pytest.raises(ReverieError, match=r"^depth 0 is below 1\.$"):
        parsed(Outer(name="x"), "--part.depth", "0")


def test_texts_are_the_comments_beside_fields():
    assert texts(Inner) == {"depth": "layers, 10 % of them cheap", "kind": "how it moves: in steps"}
    assert texts(Outer)["on"] == "whether on"
    assert texts(Outer)["depth"] == texts(Inner)["depth"]
    assert {"part", "filled", "anything", "silent"}.isdisjoint(texts(Outer))
    shown = {flag.path: flag.text for flag in flags_of(Outer(name="x"))}
    assert shown["part.depth"] == "layers, 10 % of them cheap (3)"
    assert shown["pair"] == "two (1.0 2.0)" and shown["many"] == "some of few" and shown["silent"] == ""


@dataclass(frozen=True)
class Walk:
    speed: float = 1.0
    steps: int = 3  # of a walk


@dataclass(frozen=True)
class Fly:
    speed: float = 9.0
    height: int = 100  # above ground


@dataclass(frozen=True)
class Way:
    by: Walk | Fly = field(default_factory=lambda: Walk(2.0))  # how to get there


def test_one_of_several_configs_is_chosen_by_its_name():
    flags = {flag.path: flag for flag in flags_of(Way())}
    assert set(flags) == {"by", "by.speed", "by.steps", "by.height"}
    assert flags["by"].text == "how to get there (Walk)" and flags["by.speed"].value == 2.0
    assert parsed(Way()) == Way(Walk(2.0)) and parsed(Way(), "--by.steps", "5") == Way(Walk(2.0, 5))
    assert parsed(Way(), "--by", "fly") == Way(Fly()) and parsed(Way(), "--by", "Walk") == Way(Walk())
    assert (
        parsed(Way(), "--by", "Fly", "--by.height", "7")
        == Way(Fly(9.0, 7))
        == parsed(Way, "--by", "Fly", "--by.height", "7")
    )
    with pytest.raises(ReverieError, match="Walk has no field 'height'"):
        parsed(Way(), "--by.height", "7")
