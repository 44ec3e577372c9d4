"""What the numbers of an evaluation say about a world, in plain sentences.

``verdict`` is a pure function of an eval.json of any version. A number that is missing, null or not a number makes no
sentence. Thresholds separate the worlds of docs/results.md by what their pictures show, and sentences name the numbers
they rest on, so that a reader can judge otherwise.
"""

import re
from collections.abc import Iterator

from reverie.bounded import number
from reverie.evaluation.meaning import Numbers

# dB over "repeat the last frame" from which a rollout counts as closer. CoinRun is 1.0 to 2.4 above it after frame 1.
# Boxing and the short films end 0.2 above, with pictures that are no better than a still.
CLOSER = 0.5
NEAR = 1.0  # dB below the reconstruction: a squared error that is 26 % larger
# dB that true actions gain over random ones. CoinRun, whose player lands where the keys say, has 2.5. Boxing, whose
# boxers soon move otherwise, has 1.5. An overfit Boxing, whose keys did nothing, had 0.0.
FOLLOWS, SOME = 2.0, 0.5
SWAPS = 0.8  # share of action swaps: the eight rows of `reverie compare` have 0.90 to 0.98
LOST = 0.1  # share of long sessions: one of 16 is bad luck, two are not
STUCK = 0.05  # share of frames; one session of 16 that stands still all the time has 0.06
# Drift over that of real clips, and in standard deviations. CoinRun, whose long rollouts become emptier, has 3.1 and
# 1.5; the toys have at most 1.7 and 0.33.
DRIFTS, DRIFTS_LEAST = 3.0, 0.5
FEW = 8  # episodes: Student's t makes intervals over fewer at least a fifth wider
ONE_ACTION = 1.5  # perplexity of latent actions when one of two is used in six frames of seven


def verdict(numbers: Numbers) -> list[str]:
    """Return sentences on the picture, the control, long play, the speed and the clips, in this order."""
    parts = (_picture, _control, _long_play, _drift, _speed, _clips)
    return [sentence for part in parts for sentence in part(numbers)]


def _picture(numbers: Numbers) -> Iterator[str]:
    """Against the last frame repeated, and against the tokenizer."""
    ours, copied, floor = (_curve(numbers, f"{view}psnr") for view in ("", "copy_last_", "floor_"))
    if not ours or len(ours) != len(copied):
        return
    last = len(ours)
    closer = [mine > other + CLOSER for mine, other in zip(ours, copied, strict=True)]
    begin = next((frame for frame in range(last) if all(closer[frame:])), None)
    limited = len(floor) == last and floor[-1] <= copied[-1] + CLOSER
    if begin is not None:
        where = f"from frame {begin + 1} on" if begin else _at_all(last)
        yield f"Closer to the true future than repeating the last frame, {where}."
        if len(floor) == last and ours[-1] > floor[-1] - NEAR:
            yield "As close as its tokenizer allows: only a better tokenizer could make it sharper."
    elif limited:
        yield (
            f"Not yet better than repeating the last frame: the tokenizer is the limit (its reconstruction has "
            f"{floor[-1]:.1f} dB). Train the tokenizer longer."
        )
    elif any(closer):
        end = last - closer[::-1].index(True)
        yield (
            f"Closer to the true future than repeating the last frame up to frame {end}, then no longer: train the "
            f"dynamics longer."
        )
    else:
        yield "Not yet better than repeating the last frame: train the dynamics longer."


def _at_all(frames: int) -> str:
    return f"at all {frames} frames" if frames > 1 else "at the one frame generated"


def _control(numbers: Numbers) -> Iterator[str]:
    """By the action swap where a simulator could be asked, else by what true actions gain over random ones."""
    source = numbers.get("action_source")
    if source == "none":
        yield "Has no actions, so there is nothing to control."
        return
    used = number(numbers.get("lam_perplexity"))
    if source == "latent" and used is not None and used < ONE_ACTION:
        yield "Uses only one of its latent actions, so all keys do the same: train the latent action model again."
        return
    right, blind = number(numbers.get("swap_accuracy")), number(numbers.get("swap_blind"))
    gains = _curve(numbers, "delta_psnr")
    if right is not None and blind is not None:
        low = _low(numbers, "swap_accuracy_ci", right)
        found = f"{right:.0%} of other keys lead where the simulator says; {blind:.0%} would without reading keys"
        yield _follows(low > blind and right >= SWAPS, low > blind, found)
    elif gains:
        at = min(4, len(gains)) - 1
        gain = gains[at]
        bands = numbers.get("delta_psnr_ci")
        band = bands[at] if isinstance(bands, list) and len(bands) == len(gains) else None
        low = _low({"band": band}, "band", gain)
        found = f"its true actions gain {gain:.1f} dB over random ones at frame {at + 1}"
        yield _follows(low > 0 and gain >= FOLLOWS, low > 0 and gain >= SOME, found)


def _follows(well: bool, partly: bool, found: str) -> str:
    if well:
        return f"Follows its keys: {found}."
    if partly:
        return f"Follows its keys in part: {found}. Train the dynamics longer, or give it more data."
    return f"Does not follow its keys: {found}. Train the dynamics longer, or give it more data."


def _long_play(numbers: Numbers) -> Iterator[str]:
    """For how many frames sessions stay whole, of the worse kind of keys."""
    played = numbers.get("long_play")
    if not isinstance(played, dict):
        return
    lost = _worst(played, "lost")
    if not lost:
        return
    frozen, real, absent = (_worst(played, name) for name in ("frozen", "frozen_real", "absent"))
    last = max(lost)
    whole = [step for step in lost if all(lost[early] <= LOST for early in lost if early <= step)]
    still, usual = frozen.get(last, 0.0), real.get(last, 0.0)
    if last not in whole and usual > STUCK and still <= usual + STUCK and absent.get(last, 0.0) <= STUCK:
        yield f"In long play it stands still in {still:.0%} of frames, no more than its real world ({usual:.0%})."
    elif last in whole:
        share = f"{lost[last]:.0%}" if lost[last] else "none"
        yield f"Stays whole for {last} frames: of its long sessions, {share} froze or lost the player."
    elif whole:
        yield (
            f"Stays whole for about {max(whole)} frames: by frame {last}, {lost[last]:.0%} of long sessions froze or "
            f"lost the player."
        )
    else:
        first = min(lost)
        share = f"{lost[first]:.0%} of sessions"
        yield f"Falls apart in long play: within {first} frames, {share} froze or lost the player."


def _worst(played: Numbers, name: str) -> dict[int, float]:
    """Return a share by number of frames: the larger of that with random and that with held keys."""
    shares: dict[int, float] = {}
    for kind in ("random", "held"):
        found = played.get(kind)
        found = found.get(name) if isinstance(found, dict) else None
        for step, value in found.items() if isinstance(found, dict) else ():
            share = number(value)
            if re.fullmatch("[0-9]{1,9}", str(step)) and share is not None:
                shares[int(step)] = max(share, shares.get(int(step), share))
    return shares


def _drift(numbers: Numbers) -> Iterator[str]:
    drift, usual = number(numbers.get("drift")), number(numbers.get("drift_floor"))
    if drift is not None and usual is not None and drift > max(DRIFTS * usual, DRIFTS_LEAST):
        yield f"Late frames drift: they lie {drift:.1f} standard deviations from real ones (real clips: {usual:.1f})."


def _speed(numbers: Numbers) -> Iterator[str]:
    speed, wanted = number(numbers.get("frames_per_second")), number(numbers.get("fps"))
    if speed is None or wanted is None:
        return
    enough = "Fast enough to play here" if speed >= wanted else "Too slow to play here"
    yield f"{enough}: {speed:,.{speed < 10:d}f} frames/s, and its data has {wanted:g}."


def _clips(numbers: Numbers) -> Iterator[str]:
    """What the clips do not allow to say."""
    if numbers.get("split") == "train":
        yield "Measured on clips that it was trained on: they do not show what it does with new ones."
    episodes = number(numbers.get("episodes"))
    if episodes is not None and episodes < FEW:
        many = "one episode" if episodes == 1 else f"{episodes:.0f} episodes"
        yield f"Measured on {many} only: record more to compare worlds."


def _curve(numbers: Numbers, name: str) -> list[float]:
    """Return a list of numbers; empty if an entry is not a number."""
    values = numbers.get(name)
    found = [number(value) for value in values] if isinstance(values, list) else []
    return [value for value in found if value is not None] if None not in found else []


def _low(numbers: Numbers, name: str, otherwise: float) -> float:
    """Return the lower end of an interval; ``otherwise`` where there is none, as for a single episode."""
    ends = _curve(numbers, name)
    return ends[0] if len(ends) == 2 else otherwise
