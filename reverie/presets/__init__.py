"""Named recipes: which source, which models, how long. ``reverie train NAME`` follows one; every field is a flag.

A recipe is three runs over one dataset: tokenizer, latent action model (where actions are not recorded, or shall not be
used), dynamics. Names are (world)-(dynamics)-(variant).
"""

from reverie.errors import ReverieError, did_you_mean
from reverie.presets import coinrun, published, square, toy, worlds
from reverie.presets.recipe import Recipe


def presets() -> dict[str, Recipe]:
    """Return every named recipe."""
    return {
        "toy-maskgit": toy.toy(),
        "toy-maskgit-latent": toy.toy(latent=True),
        "toy-causal": toy.causal(),
        "toy-diffusion": toy.diffusion(),
        "toy-shortcut": toy.shortcut(),
        "toy-maskgit-shipped": toy.shipped(),
        "toy-maskgit-smooth": toy.smooth(),
        "toy-agent": toy.agent(),
        "toy-agent-latent": toy.agent(latent=True),
        "square-shortcut": square.shortcut(),
        "square-shortcut-mae": square.shortcut_mae(),
        "square-agent": square.agent(),
        "coinrun-maskgit-tiny": coinrun.coinrun(
            width=128, depth=4, patch=8, steps=20_000, takes="hours on a CPU, minutes on a GPU", remat="none"
        ),
        "coinrun-maskgit-small": coinrun.coinrun(width=256, depth=6, patch=8, steps=100_000, takes="hours on a GPU"),
        "coinrun-maskgit-base": coinrun.coinrun(
            width=512, depth=8, patch=4, steps=200_000, takes="a day on a GPU of 80 GB"
        ),
        "coinrun-shortcut": coinrun.shortcut(),
        "coinrun-world": worlds.coinrun(),
        "coinrun-agent": worlds.coinrun_agent(),
        "atari-agent": worlds.atari_agent(),
        "vizdoom-world": worlds.vizdoom(),
        "carracing-world": worlds.carracing(),
        "coinrun-maskgit-jafar": coinrun.jafar(),
        "coinrun-maskgit-jasmine": coinrun.jasmine(),
        "minecraft-shortcut-2b": published.dreamer4(),
        "minecraft-maskgit-11b": published.genie(),
    }


def preset(name: str) -> Recipe:
    """Return one recipe by name; ReverieError with the nearest name when there is none."""
    known = presets()
    if name not in known:
        raise ReverieError(f"there is no preset '{name}'.{did_you_mean(name, known)}")
    return known[name]
