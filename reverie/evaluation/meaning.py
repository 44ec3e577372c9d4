"""What each number of an evaluation means, in one sentence, and the dozen of them that a reader looks at first."""

import math
from collections.abc import Iterable
from typing import Any

from rich.table import Table

# What each number of eval.json means, in the order of the tables. Lists have one entry per generated frame.
MEANING = {
    "psnr": "PSNR of the rollout against the true future, in dB. Higher is closer.",
    "copy_last_psnr": "PSNR of repeating the last context frame. A useful world is above it.",
    "floor_psnr": "PSNR of the tokenizer's reconstruction. A rollout can hardly be above it.",
    "random_psnr": "PSNR of a rollout along random actions.",
    "delta_psnr": "PSNR with the true actions minus PSNR with random ones. At 0, actions do nothing.",
    "delta_psnr_4": "The same at the fourth generated frame, as Genie reports it.",
    "ssim": "Structural similarity of the rollout and the true future. Equal frames have 1.",
    "copy_last_ssim": "Structural similarity of the last context frame, repeated.",
    "floor_ssim": "Structural similarity of the tokenizer's reconstruction.",
    "random_ssim": "Structural similarity of a rollout along random actions.",
    "uncertainty": "How unsure the dynamics was of a generated frame: bits per token, or distance of latents.",
    "uncertainty_rank": "Rank correlation of a frame's error with all uncertainty up to it, over clips.",
    "swap_accuracy": "How often another action leads to the frame that the simulator shows for it.",
    "swap_chance": "How often a guess would be right in the action swap.",
    "swap_blind": "The best that a world can do in the action swap if it ignores actions.",
    "swap_pairs": "How many pairs of clip and action were tried.",
    "changed_top1": "How often the likeliest token is right, where the picture changes.",
    "top1": "How often the likeliest token is right.",
    "top2": "How often the right token is among the 2 likeliest.",
    "top5": "How often the right token is among the 5 likeliest.",
    "top16": "How often the right token is among the 16 likeliest.",
    "code_usage": "Share of the tokenizer's codes in use.",
    "code_entropy": "Entropy of these codes. 1 means that all are used equally.",
    "code_perplexity": "Effective number of the tokenizer's codes in use.",
    "lam_usage": "Share of latent actions in use.",
    "lam_entropy": "Entropy of latent actions. 1 means that all are used equally.",
    "lam_perplexity": "Effective number of latent actions in use.",
    "lam_agreement": "How often the recorded action follows from the latent one, with the best map.",
    "lam_agreement_chance": "How often the most frequent action would be right there.",
    "lam_nmi": "Normalised mutual information of latent and recorded actions, from 0 to 1.",
    "action_shuffle_ratio": "Loss with other clips' actions over loss with the true ones. At 1, actions are ignored.",
    "idm_accuracy": "How often a small network reads an action, or a part of one, from two generated frames.",
    "idm_accuracy_real": "The same from real frames, which is the ceiling.",
    "idm_accuracy_floor": "The same from the tokenizer's reconstruction.",
    "idm_chance": "How often the most frequent action would be right there.",
    "drift": "How far late frames of a long rollout lie from real ones, in standard deviations.",
    "drift_brightness": "Of that, the mean of each colour.",
    "drift_contrast": "Of that, the spread within a frame.",
    "drift_sharpness": "Of that, the difference of neighbouring pixels.",
    "drift_floor": "The drift between real frames of different clips, which is the best possible.",
    "drift_copy_last": "The drift of the last context frame, repeated.",
    "drift_frames": "How many frames were generated to measure drift.",
    "frechet_random": "Fréchet distance of rollouts and real clips, with features of a random network.",
    "frechet_random_floor": "The same between real clips, which is the best possible.",
    "frechet_random_copy_last": "The same for the last context frame, repeated.",
    "frechet_random_actions": "The same for rollouts along random actions.",
    "frechet_user": "Fréchet distance of rollouts and real clips, with features of your own function.",
    "frechet_user_floor": "The same between real clips, which is the best possible.",
    "frechet_user_copy_last": "The same for the last context frame, repeated.",
    "frechet_user_actions": "The same for rollouts along random actions.",
    "long_play": "Share of long sessions that freeze or lose their player, with random and with held keys.",
    "parameters": "Weights of the dynamics.",
    "flop_per_frame": "FLOPs of a played and decoded frame (matmuls and convolutions).",
    "frames_per_second": "Frames that one player gets per second (median).",
    "latency_p95_ms": "Milliseconds within which 19 of 20 frames are ready.",
    "frames_per_second_uncached": "Frames per second without the KV cache.",
}

HEADLINES = (
    "psnr", "copy_last_psnr", "floor_psnr", "delta_psnr", "swap_accuracy", "swap_blind", "lam_perplexity",
    "idm_accuracy", "idm_accuracy_real", "drift", "drift_floor", "long_play", "frames_per_second",
)  # fmt: skip

Numbers = dict[str, Any]


def rows(numbers: Numbers, names: Iterable[str] = MEANING) -> list[tuple[str, str, str, str]]:
    """Return (name, value, 95 % interval, meaning) as text; what is None is left out.

    For a list, the values of the first and the last generated frame and the interval of the last.
    """
    found = []
    for name in names:
        value, interval = numbers.get(name), numbers.get(f"{name}_ci")
        if value is None:
            continue
        if isinstance(value, dict):  # of a long play
            shares = [short(list(value[kind]["lost"].values())[-1]) for kind in ("random", "held")]
            found.append((name, ", ".join(shares), "", MEANING[name]))
            continue
        if isinstance(value, list):
            shown = f"{short(value[0])} .. {short(value[-1])}"
            interval = interval and interval[-1]
        else:
            shown = short(value)
        if interval and not math.isfinite(interval[0]):  # one episode has none
            interval = None
        band = f"{short(interval[0])} .. {short(interval[1])}" if interval else ""
        found.append((name, shown, band, MEANING[name]))
    return found


def is_readable(numbers: Numbers) -> bool:
    """Whether an eval.json, which may come from anybody, holds an evaluation that ``rows`` and ``title`` can show."""
    try:
        return bool(rows(numbers) and title(numbers) and basis(numbers) and len(numbers["psnr"]))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return False


def table(numbers: Numbers) -> Table:
    """Return the headline numbers as a table for the terminal."""
    shown = Table(title=f"{title(numbers)}, {basis(numbers)}", title_justify="left", box=None, pad_edge=False)
    shown.add_column("", style="bold", no_wrap=True)
    shown.add_column("first .. last", justify="right")
    shown.add_column("95 % interval", justify="right", style="dim")
    shown.add_column("")
    for row in rows(numbers, HEADLINES):
        shown.add_row(*row)
    return shown


def title(numbers: Numbers) -> str:
    """Return on which clips the numbers were measured."""
    split = numbers.get("split") or "?"
    kind = "held-out clips" if split != "train" else "clips that were trained on"
    return f"{numbers['dataset']}: {numbers['clips']} {kind} of {numbers['episodes']} episodes (split {split})"


def basis(numbers: Numbers) -> str:
    """Return what a rollout was given, and how long it was."""
    actions = {"true": "true actions", "latent": "latent actions", "none": "no actions"}[numbers["action_source"]]
    context, frames = numbers["context"], numbers["horizon"]
    return f"{frames} generated frame{'s' * (frames > 1)} after {context} context frame{'s' * (context > 1)}, {actions}"


def short(value: float) -> str:
    """Return a number in about three digits."""
    if isinstance(value, int):
        return f"{value:,d}"
    return f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}"
