"""The files of an evaluation: eval.json, curves, contact sheets and a GIF; and its table for the terminal.

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

# What each number of eval.json means, in the order of the table. Of lists (one entry per generated frame) the table
# shows the first and the last entry.
MEANING = {
    "psnr": "rollout against truth, dB, mean over clips",
    "copy_last_psnr": "baseline: the last context frame repeated",
    "floor_psnr": "the tokenizer's reconstruction of the truth: an upper bound",
    "random_psnr": "rollout along random actions",
    "delta_psnr": "true minus random actions, dB: 0 for a world that ignores its player",
    "delta_psnr_4": "the same at the fourth generated frame (Genie)",
    "ssim": "structural similarity of the rollout",
    "copy_last_ssim": "of the last context frame repeated",
    "floor_ssim": "of the reconstruction",
    "random_ssim": "of the rollout along random actions",
    "swap_accuracy": "share of other actions whose generated frame is nearest to their own true frame",
    "swap_chance": "the same for guessing",
    "swap_blind": "the most that a world can get which ignores the action",
    "swap_pairs": "number of (clip, action) pairs tried",
    "changed_top1": "accuracy of the likeliest token, where the picture changes",
    "top1": "accuracy of the likeliest token",
    "top2": "truth among the 2 likeliest tokens",
    "top5": "truth among the 5 likeliest tokens",
    "top16": "truth among the 16 likeliest tokens",
    "code_usage": "share of the tokenizer's codes in use",
    "code_entropy": "their entropy, 1 is even use of all",
    "code_perplexity": "effective number of tokenizer codes",
    "lam_usage": "share of latent actions in use",
    "lam_entropy": "their entropy, 1 is even use of all",
    "lam_perplexity": "effective number of latent actions",
    "lam_agreement": "recorded action predicted from the latent one (best map)",
    "lam_agreement_chance": "the same for always the commonest action",
    "lam_nmi": "mutual information of latent and recorded actions, 0 to 1",
    "action_shuffle_ratio": "loss with other clips' actions over loss with the true ones: 1 ignores actions",
    "idm_accuracy": "recorded action predicted from two generated frames by a small network",
    "idm_accuracy_real": "the same from real frames: an upper bound",
    "idm_accuracy_floor": "the same from the reconstruction",
    "idm_chance": "the same for always the commonest action",
    "drift": "late frames of a long rollout against real ones, in their standard deviations",
    "drift_brightness": "of that, the mean of each colour",
    "drift_contrast": "of that, the spread within a frame",
    "drift_sharpness": "of that, the difference of neighbours",
    "drift_floor": "the same for real frames of other clips",
    "drift_copy_last": "the same for the last context frame repeated",
    "drift_frames": "frames of that rollout",
    "frechet_random": "distance of rollouts from real clips as sets, features of a random network",
    "frechet_random_floor": "the same for other real clips",
    "frechet_random_copy_last": "the same for the last context frame repeated",
    "frechet_random_actions": "the same for rollouts along random actions",
    "frechet_user": "the same distance, features of your own function",
    "frechet_user_floor": "the same for other real clips",
    "frechet_user_copy_last": "the same for the last context frame repeated",
    "frechet_user_actions": "the same for rollouts along random actions",
    "long_play": "shares of frames frozen or without player, of sessions lost: docs/results.md",
    "parameters": "parameters of the dynamics",
    "flop_per_frame": "FLOPs of a played frame, decoded (matmuls and convolutions)",
    "frames_per_second": "frames played a second, decoded and on the host (median)",
    "latency_p95_ms": "95th percentile of the time of a frame, milliseconds",
    "frames_per_second_uncached": "the same model and sampler without KV cache",
}

Numbers = dict[str, Any]


def write_report(numbers: Numbers, pictures: dict[str, np.ndarray], out: Path) -> Path:
    """Write ``out/eval.json`` and, under ``out/eval``, curves.png and each picture (PNG) or clip (GIF).

    Returns the path of the JSON. Numbers that are not finite are null in it.
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
    """Return the numbers that are not None as a table for the terminal, each with its meaning."""
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
        if interval and not math.isfinite(interval[0]):  # of one episode
            interval = None
        band = f"{_short(interval[0])} .. {_short(interval[1])}" if interval else ""
        shown.add_row(name, between, band, meaning)
    return shown


def _ends(played: Numbers) -> str:
    """Shares after the most frames."""
    shares = {name: list(played[name].values())[-1] for name in ("frozen", "absent", "lost") if played[name]}
    return ", ".join(f"{name} {share:.2f}" for name, share in shares.items())


def curves(numbers: Numbers) -> np.ndarray:
    """Return PSNR and SSIM per generated frame, with baselines and bounds, as a picture (H, W, 3) uint8."""
    figure = Figure(figsize=(11, 4), dpi=110, layout="constrained")
    panels = [kind for kind in ("psnr", "ssim") if numbers.get(kind)]
    for axes, kind in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        _panel(axes, numbers, kind)
    figure.suptitle(_title(numbers), fontsize=10)
    return drawn(figure)


def drawn(figure: Figure) -> np.ndarray:
    """Return a figure as a picture (H, W, 3) uint8."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba")
    width, height = figure.canvas.get_width_height()
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]


def _panel(axes: Axes, numbers: Numbers, kind: str) -> None:
    lines = {
        f"floor_{kind}": ("tokenizer's reconstruction", "tab:gray", ":"),
        kind: ("rollout", "tab:blue", "-"),
        f"random_{kind}": ("rollout, random actions", "tab:orange", "--"),
        f"copy_last_{kind}": ("copy last frame", "tab:red", "-."),
    }
    for name, (label, colour, style) in lines.items():
        if not numbers.get(name):
            continue
        steps = np.arange(1, len(numbers[name]) + 1)
        axes.plot(steps, numbers[name], style, color=colour, label=label)
        low, high = np.array(numbers[f"{name}_ci"]).T
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("generated frame")
    axes.set_ylabel("PSNR, dB" if kind == "psnr" else "SSIM")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _title(numbers: Numbers) -> str:
    actions = {"true": "true actions", "latent": "latent actions", "none": "no actions"}[numbers["action_source"]]
    split = numbers.get("split") or "?"
    kind = "held-out clips" if split != "train" else "training clips"
    clips = f"{numbers['clips']} {kind} of {numbers['episodes']} episodes (split {split})"
    return f"{numbers['dataset']}: {clips}, {numbers['context']} context frames, {actions}"


def _short(value: float) -> str:
    return f"{value:d}" if isinstance(value, int) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
