"""Worlds side by side: pooled evaluations as rows of a table and as curves."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from reverie.evaluation.meaning import Numbers
from reverie.evaluation.plots import drawn

STEPS = (1, 4, 16, 64)  # generated frames that the tables show
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")

# Columns: heading, key, digits. Lists are shown at ``STEPS``.
PICTURE = (("PSNR", "psnr", 1), ("SSIM", "ssim", 2))
CONTROL = (
    ("delta-PSNR 4", "delta_psnr_4", 1),
    ("swap", "swap_accuracy", 2),
    ("shuffle ratio", "action_shuffle_ratio", 2),
    ("actions read", "idm_accuracy", 2),
    ("drift", "drift", 2),
    ("random Fréchet", "frechet_random", 2),
)
COST = (
    ("steps", "steps", 0),
    ("training FLOP", "training_flop", -1),
    ("parameters", "parameters", 0),
    ("FLOP a frame", "flop_per_frame", -1),
    ("frames/s", "frames_per_second", 0),
    ("without KV cache", "frames_per_second_uncached", 0),
)


def markdown(about: str, rows: Sequence[Numbers]) -> str:
    """Return three tables (pictures, control, cost) as text: means over seeds, ± half the 95 % interval."""
    beside = [("copy last frame", "copy_last"), ("reconstruction", "floor")]
    pictures = [[*_names(row), *_lists(row, "")] for row in rows]
    for name, prefix in beside:
        for row in {row["family"]: row for row in rows}.values() if prefix == "floor" else rows[:1]:
            pictures.append([f"{name}, {row['family']}" if prefix == "floor" else name, "", *_lists(row, f"{prefix}_")])
    heads = [f"{name} {step}" for name, key, _ in PICTURE for step in _steps(rows[0], key)]
    parts = [
        f"# {about}\n\n{rows[0]['runs']} seeds; means ± half the 95 % interval over seeds (Student's t).\n",
        _table(["dynamics", "actions", *heads], pictures),
        _table(["dynamics", "actions", *(head for head, _, _ in CONTROL)], [_scalars(row, CONTROL) for row in rows]),
        _table(["dynamics", "actions", *(head for head, _, _ in COST)], [_scalars(row, COST) for row in rows]),
    ]
    return "\n".join(parts)


def curves(rows: Sequence[Numbers]) -> np.ndarray:
    """Return PSNR and delta-PSNR per generated frame as a picture (H, W, 3) uint8."""
    figure = Figure(figsize=(12, 4.5), dpi=110, layout="constrained")
    families = list(dict.fromkeys(row["family"] for row in rows))
    for axes, key, title in zip(
        figure.subplots(1, 2), ("psnr", "delta_psnr"), ("PSNR, dB", "delta-PSNR, dB"), strict=True
    ):
        for row in rows:
            steps = np.arange(1, len(row[key]) + 1)
            colour = COLOURS[families.index(row["family"]) % len(COLOURS)]
            style = "-" if row["actions"] == "true" else "--"
            axes.plot(steps, row[key], style, color=colour, label=f"{row['family']}, {row['actions']} actions")
        if key == "psnr":
            axes.plot(steps, rows[0]["copy_last_psnr"], ":", color="tab:gray", label="copy last frame")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("generated frame")
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return drawn(figure)


def _names(row: Numbers) -> list[str]:
    return [row["family"], row["actions"]]


def _steps(row: Numbers, key: str) -> list[int]:
    return [step for step in STEPS if row.get(key) and step <= len(row[key])]


def _lists(row: Numbers, prefix: str) -> list[str]:
    cells = []
    for _, key, digits in PICTURE:
        values, bands = row.get(prefix + key), row.get(f"{prefix}{key}_ci")
        for step in _steps(row, prefix + key):
            cells.append(_cell(values[step - 1], bands and bands[step - 1], digits))  # pyright: ignore
    return cells


def _scalars(row: Numbers, columns: Sequence[tuple[str, str, int]]) -> list[str]:
    cells = [_cell(row.get(key), row.get(f"{key}_ci"), digits) for _, key, digits in columns]
    return [*_names(row), *cells]


def _cell(value: float | None, band: Sequence[float] | None, digits: int) -> str:
    if value is None:
        return ""
    if digits < 0:
        return f"{value:.2e}"
    half = (band[1] - band[0]) / 2 if band else 0
    return f"{value:,.{digits}f}" + (f" ± {half:.{digits}f}" if half else "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
