"""The verdict on a world: each sentence on numbers as real evaluations have them, and none on what is missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reverie.checksums import read_signed
from reverie.evaluation.verdict import verdict

SHIPPED = Path(__file__).parents[1] / "reverie" / "worlds" / "platformer"
GOOD = read_signed(SHIPPED / "eval.json")
STEPS = ("64", "256", "1000")


def played(lost, frozen=(0, 0, 0), real=(0, 0, 0), absent=(0, 0, 0)) -> dict[str, Any]:
    """Return "long_play" whose held keys are worse than its random ones."""
    shares = {"lost": lost, "frozen": frozen, "frozen_real": real, "absent": absent}
    held = {name: dict(zip(STEPS, values, strict=True)) if values else None for name, values in shares.items()}
    return {"sessions": 16, "frames": 1000, "random": {**held, "lost": dict.fromkeys(STEPS, 0.0)}, "held": held}


def test_the_shipped_world():
    assert verdict(GOOD) == [
        "Closer to the true future than repeating the last frame, at all 16 frames.",
        "Follows its keys: 98% of other keys lead where the simulator says; 36% would without reading keys.",
        "Stays whole for 1000 frames: of its long sessions, none froze or lost the player.",
        "Fast enough to play here: 166 frames/s, and its data has 6.",
    ]


COPIED = GOOD["copy_last_psnr"]
LATENT = {"action_source": "latent", "swap_accuracy": None, "swap_blind": None}  # as of a world learned from videos
CASES: list[tuple[dict[str, Any], str]] = [
    # -- the picture
    ({"psnr": [c - 2 for c in COPIED[:3]] + [c + 2 for c in COPIED[3:]]}, "last frame, from frame 4 on."),
    ({"psnr": GOOD["psnr"][:1], "copy_last_psnr": COPIED[:1], "floor_psnr": [50.0]}, "at the one frame generated."),
    ({"psnr": [f - 0.5 for f in GOOD["floor_psnr"]]}, "As close as its tokenizer allows"),
    ({"psnr": [c + 2 for c in COPIED[:6]] + COPIED[6:]}, "up to frame 6, then no longer: train the dynamics longer."),
    ({"psnr": [c + 0.4 for c in COPIED]}, "Not yet better than repeating the last frame: train the dynamics longer."),
    ({"psnr": COPIED, "floor_psnr": [22.0] * 16}, "the tokenizer is the limit (its reconstruction has 22.0 dB)"),
    # -- control
    ({"action_source": "none", "delta_psnr": None}, "Has no actions, so there is nothing to control."),
    ({"swap_accuracy": 0.55, "swap_accuracy_ci": [0.45, 0.6]}, "Follows its keys in part: 55% of other keys"),
    ({"swap_accuracy": 0.36, "swap_accuracy_ci": [0.3, 0.4]}, "Does not follow its keys: 36% of other keys"),
    ({"swap_accuracy": 0.9, "swap_accuracy_ci": [0.3, 1.0]}, "Does not follow its keys: 90% of other keys"),
    (LATENT, "Follows its keys: its true actions gain 11.1 dB over random ones at frame 4."),
    (LATENT | {"delta_psnr": [2.3, 1.9], "delta_psnr_ci": [[1, 3], [1, 3]]}, "in part: its true actions gain 1.9 dB"),
    (LATENT | {"delta_psnr": [0.0], "delta_psnr_ci": [[-1, 1]]}, "Does not follow its keys: its true actions gain 0.0"),
    (LATENT | {"delta_psnr": [5.0], "delta_psnr_ci": [[-1, 11]]}, "Does not follow its keys: its true actions gain 5"),
    (LATENT | {"lam_perplexity": 1.02}, "Uses only one of its latent actions"),
    # -- long play
    ({"long_play": played((0, 0.0625, 0.0625))}, "Stays whole for 1000 frames: of its long sessions, 6% froze"),
    ({"long_play": played((0, 0.0625, 0.5))}, "Stays whole for about 256 frames: by frame 1000, 50% of long sessions"),
    ({"long_play": played((0.25, 0.5, 1))}, "Falls apart in long play: within 64 frames, 25% of sessions froze"),
    ({"long_play": played((0.25, 0.5, 1), (0.3, 0.3, 0.31), (0.3,) * 3, None)}, "In long play it stands still in 31%"),
    ({"long_play": played((0.25, 0.5, 1), (0.9,) * 3, (0.3,) * 3)}, "Falls apart in long play"),
    ({"long_play": played((0.25, 0.5, 1), (0.3,) * 3, (0.3,) * 3, (0.2,) * 3)}, "Falls apart in long play"),
    # -- drift, speed, clips
    ({"drift": 1.51, "drift_floor": 0.48}, "Late frames drift: they lie 1.5 standard deviations from real ones"),
    ({"frames_per_second": 3.2}, "Too slow to play here: 3.2 frames/s, and its data has 6."),
    ({"frames_per_second": 2264.4}, "Fast enough to play here: 2,264 frames/s, and its data has 6."),
    ({"split": "train"}, "Measured on clips that it was trained on"),
    ({"episodes": 4}, "Measured on 4 episodes only"),
    ({"episodes": 1}, "Measured on one episode only"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), CASES, ids=[says for _, says in CASES])
def test_every_sentence(changes, says):
    said = verdict(GOOD | changes)
    assert sum(says in sentence for sentence in said) == 1, said
    assert len(said) <= 6 and all(len(sentence.split()) < 36 and sentence[-1] == "." for sentence in said)


@pytest.mark.parametrize(
    ("changes", "silent"),
    [
        ({"drift": 0.12, "drift_floor": 0.03}, "drift"),
        ({"drift": 1.51, "drift_floor": 0.6}, "drift"),
        ({"long_play": None}, "long"),
        ({"frames_per_second": None}, "play"),
        ({"psnr": [None] * 16}, "Closer"),
    ],
)
def test_what_says_nothing(changes, silent):
    assert not any(silent in sentence for sentence in verdict(GOOD | {"long_play": None} | changes))


def test_without_a_number_there_is_no_sentence():
    """Of older versions, of worlds without actions, without long play, and of nothing."""
    for name in GOOD:
        assert verdict({key: value for key, value in GOOD.items() if key != name})
    assert verdict({}) == []


def test_whatever_a_file_holds_there_are_sentences_and_no_error():
    """Numbers are read from files that anybody may have written."""
    rng = np.random.default_rng(0)
    junk = [
        None,
        True,
        "1",
        [],
        [[]],
        {},
        {"held": {"lost": {"x": 1, "²": 2, "9" * 5000: 1, "64": "a"}}},
        -1,
        1e308,
        10**400,
        [1, None],
    ]
    for _ in range(300):
        some = {name: junk[rng.integers(len(junk))] for name in GOOD if rng.random() < 0.5}
        assert all(isinstance(sentence, str) for sentence in verdict(GOOD | some))
