"""An evaluation written down: eval.json, a table for the terminal, curves, contact sheets and a GIF.

Legend: H W C image, T time.
"""

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from reverie.checksums import signed
from reverie.evaluation.video import write_gif, write_png

# What each number of eval.json means, in the order of the table. Lists (one entry per dreamed frame) show first, last.
MEANING = {
    "psnr": "dream against truth, dB, mean over clips",
    "copy_last_psnr": "the last real frame, repeated: a dream must beat it",
    "floor_psnr": "the tokenizer's own copy of the truth: no dream can beat it",
    "random_psnr": "dream along random actions",
    "delta_psnr": "true minus random actions, dB: 0 is a world that ignores its player",
    "delta_psnr_4": "the same at the fourth dreamed frame (Genie)",
    "ssim": "structural similarity of the dream",
    "copy_last_ssim": "of the last real frame, repeated",
    "floor_ssim": "of the tokenizer's own copy",
    "random_ssim": "of the dream along random actions",
    "swap_accuracy": "asked for another action, dreams what the simulator shows for it",
    "swap_chance": "the same for guessing",
    "swap_blind": "the most that a dream can get which ignores its action",
    "swap_pairs": "how many (clip, action) pairs were asked",
    "changed_top1": "accuracy of the likeliest token, where the picture changes",
    "top1": "accuracy of the likeliest token",
    "top2": "truth among the 2 likeliest tokens",
    "top5": "truth among the 5 likeliest tokens",
    "top16": "truth among the 16 likeliest tokens",
    "code_usage": "share of the tokenizer's codes in use",
    "code_entropy": "their entropy, 1 is even use of all",
    "code_perplexity": "tokenizer codes in effect used",
    "lam_usage": "share of latent actions in use",
    "lam_entropy": "their entropy, 1 is even use of all",
    "lam_perplexity": "latent actions in effect used",
    "lam_agreement": "true action told from the latent one (best map)",
    "lam_agreement_chance": "the same for always the commonest action",
    "lam_nmi": "mutual information of latent and true actions, 0 to 1",
    "action_shuffle_ratio": "loss with other clips' actions over that with its own: 1 ignores actions",
    "idm_accuracy": "true action read off two dreamed frames by a small network",
    "idm_accuracy_real": "the same off real frames: no dream can expect more",
    "idm_accuracy_floor": "the same off the tokenizer's own copy",
    "idm_chance": "the same for always the commonest action",
    "drift": "late frames of a long dream against real ones, in their standard deviations",
    "drift_brightness": "of that, the mean of each colour",
    "drift_contrast": "of that, the spread within a frame",
    "drift_sharpness": "of that, the difference of neighbours",
    "drift_floor": "the same for real frames of other clips",
    "drift_copy_last": "the same for the last real frame, repeated",
    "drift_frames": "how many frames were dreamed for it",
    "frechet_random": "distance of dreams as a set from real clips, features of a random network",
    "frechet_random_floor": "the same for other real clips",
    "frechet_random_copy_last": "the same for the last real frame, repeated",
    "frechet_random_actions": "the same for dreams along random actions",
    "frechet_user": "the same distance, features of your own function",
    "frechet_user_floor": "the same for other real clips",
    "frechet_user_copy_last": "the same for the last real frame, repeated",
    "frechet_user_actions": "the same for dreams along random actions",
    "long_play": "shares of frames frozen or without player, of sessions lost: docs/results.md",
    "parameters": "weights of the dynamics",
    "flop_per_frame": "arithmetic of a played frame, decoded (matmuls and convolutions)",
    "frames_per_second": "frames played a second, decoded and on the host (median)",
    "latency_p95_ms": "milliseconds that 19 of 20 frames take at most",
    "frames_per_second_uncached": "the same model and sampler without memory",
}

Numbers = dict[str, Any]


def write_report(numbers: Numbers, pictures: dict[str, np.ndarray], out: Path) -> Path:
    """Write ``out/eval.json`` and, under ``out/eval``, curves.png and each picture (PNG) or clip (GIF).

    Returns the path of the JSON, in which what is not a finite number is null.
    """
    out = Path(out)
    folder = out / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        if picture.ndim == 3:
            write_png(folder / f"{name}.png", picture)
        else:
            write_gif(folder / f"{name}.gif", picture, numbers.get("fps") or 10.0)
    write_png(folder / "curves.png", curves(numbers))
    path, part = out / "eval.json", out / f".eval.json.{os.getpid()}.part"
    try:
        finite = {key: _finite(value) for key, value in numbers.items()}
        lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in signed(finite).items()]
        part.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def table(numbers: Numbers) -> Table:
    """Return the numbers as a table for the terminal, each with its meaning; what is None is left out."""
    shown = Table(title=_title(numbers), title_justify="left", box=None, pad_edge=False)
    shown.add_column("", style="bold")
    shown.add_column("", justify="right")
    shown.add_column("95 % interval", justify="right", style="dim")
    shown.add_column("")
    for name, meaning in MEANING.items():
        value, interval = numbers.get(name), numbers.get(f"{name}_ci")
        if value is None:
            continue
        if isinstance(value, dict):  # of a long play
            for kind in ("random", "held"):
                shown.add_row(f"{name}, {kind} keys", _ends(value[kind]), "", meaning)
            continue
        if isinstance(value, list):
            between = f"{_short(value[0])} .. {_short(value[-1])}"
            interval = interval and interval[-1]
        else:
            between = _short(value)
        if interval and not math.isfinite(interval[0]):  # one episode cannot tell
            interval = None
        band = f"{_short(interval[0])} .. {_short(interval[1])}" if interval else ""
        shown.add_row(name, between, band, meaning)
    return shown


def _ends(played: Numbers) -> str:
    """Shares after the most frames."""
    shares = {name: list(played[name].values())[-1] for name in ("frozen", "absent", "lost") if played[name]}
    return ", ".join(f"{name} {share:.2f}" for name, share in shares.items())


def curves(numbers: Numbers) -> np.ndarray:
    """Return PSNR and SSIM per dreamed frame, with what they lie between, as a picture (H, W, 3) uint8."""
    figure = Figure(figsize=(11, 4), dpi=110, layout="constrained")
    panels = [kind for kind in ("psnr", "ssim") if numbers.get(kind)]
    for axes, kind in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        _panel(axes, numbers, kind)
    figure.suptitle(_title(numbers), fontsize=10)
    return drawn(figure)


def drawn(figure: Figure) -> np.ndarray:
    """Return a figure as a picture (H, W, 3) uint8."""
    memory = io.BytesIO()
    figure.savefig(memory, format="rgba")
    width, height = figure.canvas.get_width_height()
    return np.frombuffer(memory.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]


def _panel(axes: Axes, numbers: Numbers, kind: str) -> None:
    lines = {
        f"floor_{kind}": ("tokenizer's reconstruction", "tab:gray", ":"),
        kind: ("dream", "tab:blue", "-"),
        f"random_{kind}": ("dream, random actions", "tab:orange", "--"),
        f"copy_last_{kind}": ("last frame repeated", "tab:red", "-."),
    }
    for name, (label, colour, style) in lines.items():
        if not numbers.get(name):
            continue
        steps = np.arange(1, len(numbers[name]) + 1)
        axes.plot(steps, numbers[name], style, color=colour, label=label)
        low, high = np.array(numbers[f"{name}_ci"]).T
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("dreamed frame")
    axes.set_ylabel("PSNR, dB" if kind == "psnr" else "SSIM")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _title(numbers: Numbers) -> str:
    actions = {"true": "true actions", "latent": "latent actions", "none": "no actions"}[numbers["action_source"]]
    split = numbers.get("split") or "?"
    kind = "held-out clips" if split != "train" else "clips that were trained on"
    clips = f"{numbers['clips']} {kind} of {numbers['episodes']} episodes (split {split})"
    return f"{numbers['dataset']}: {clips}, {numbers['context']} real frames, {actions}"


def _short(value: float) -> str:
    return f"{value:d}" if isinstance(value, int) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
