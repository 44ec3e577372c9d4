"""Curves as figures, for pictures and pages: an evaluation over its generated frames, a training log over steps."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from reverie.evaluation.meaning import Numbers, basis, title

SMALL = (4.4, 3.3)  # inches of a chart on a page: its text is still read where a phone scales it to 360 pixels
AXES = {"psnr": "PSNR, dB", "ssim": "SSIM", "delta_psnr": "delta-PSNR, dB"}
# The numbers that a panel has curves of: prefix -> label, colour, line.
VIEWS = {
    "floor_": ("reconstruction", "tab:gray", ":"),
    "": ("rollout", "tab:blue", "-"),
    "random_": ("rollout, random actions", "tab:orange", "--"),
    "copy_last_": ("copy last frame", "tab:red", "-."),
}
DECADES = 20.0  # a loss that falls to a twentieth is looked at in decades


def curves(numbers: Numbers) -> np.ndarray:
    """Return PSNR and SSIM per generated frame, with what they lie between, as a picture (H, W, 3) uint8."""
    figure = Figure(figsize=(11, 4), dpi=110, layout="constrained")
    panels = [kind for kind in ("psnr", "ssim") if numbers.get(kind)]
    for axes, kind in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        _panel(axes, numbers, kind)
        axes.legend(fontsize=8, frameon=False)
    figure.suptitle(f"{title(numbers)}, {basis(numbers)}", fontsize=10, parse_math=False)
    return drawn(figure)


def panel(numbers: Numbers, kind: str) -> Figure:
    """Return one chart of "psnr", "ssim" or "delta_psnr" per generated frame, with 95 % intervals."""
    figure, axes = _small(bottom=0.31)
    _panel(axes, numbers, kind)
    figure.legend(fontsize=8, frameon=False, loc="lower center", ncols=2)
    return figure


def beside(runs: Mapping[str, Numbers], kind: str) -> Figure | None:
    """Return one chart of "psnr", "ssim" or "delta_psnr" with a line for each run by name; None if no run has it."""
    found = {name: numbers[kind] for name, numbers in runs.items() if numbers.get(kind)}
    if not found:
        return None
    figure, axes = _small(bottom=0.31)
    for name, values in found.items():
        steps = np.arange(1, len(values) + 1)
        (line,) = axes.plot(steps, values, "-" if len(steps) > 1 else "o", label=name)
        if len(bands := runs[name].get(f"{kind}_ci") or ()) == len(values):
            low, high = np.array(bands, float).T
            axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    _frame_axes(axes, kind)
    figure.legend(fontsize=8, frameon=False, loc="lower center", ncols=2)
    return figure


def trace(lines: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> Figure:
    """Return a chart of one number of a training log: (steps, values) by label; in decades if the number falls far."""
    figure, axes = _small(bottom=0.31 if len(lines) > 1 else 0.16)
    for (label, (steps, values)), colour in zip(lines.items(), ("tab:blue", "tab:orange"), strict=False):
        axes.plot(steps, values, "-" if len(steps) > 1 else "o", color=colour, linewidth=1.4, label=label)
    shown = [value for _, values in lines.values() for value in values]
    if min(shown) > 0 and any(len(values) and values[0] > DECADES * min(values) for _, values in lines.values()):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if len(lines) > 1:
        figure.legend(fontsize=8, frameon=False, loc="lower center", ncols=2)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.3)
    return figure


def drawn(figure: Figure) -> np.ndarray:
    """Return a figure as a picture (H, W, 3) uint8."""
    memory = io.BytesIO()
    figure.savefig(memory, format="rgba")
    width, height = figure.canvas.get_width_height()
    return np.frombuffer(memory.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]


def _small(bottom: float) -> tuple[Figure, Axes]:
    """Return a chart for a page. Margins are fixed: fitting them to the labels takes as long as all the rest."""
    figure = Figure(figsize=SMALL)
    return figure, figure.add_axes((0.16, bottom, 0.82, 0.96 - bottom))


def _panel(axes: Axes, numbers: Numbers, kind: str) -> None:
    for prefix, (label, colour, style) in VIEWS.items():
        name = f"{prefix}{kind}"
        if not numbers.get(name):
            continue
        steps = np.arange(1, len(numbers[name]) + 1)
        axes.plot(steps, numbers[name], style if len(steps) > 1 else "o", color=colour, label=label)
        low, high = np.array(numbers[f"{name}_ci"]).T
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    _frame_axes(axes, kind)


def _frame_axes(axes: Axes, kind: str) -> None:
    axes.set_xlabel("generated frame")
    axes.set_ylabel(AXES[kind])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
