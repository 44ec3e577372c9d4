"""What an action is, for every dataset, model and player.

The one convention, to which every importer converts: ``actions[t]`` is the action that led *to* frame ``t``. So
``actions[0]`` is always ``START`` (nothing led to the first frame), and a clip cut out of an episode keeps its own
first action as it was; models learn both. "No action yet" and "nobody recorded it" are different facts and different
codes. Codes are negative so that they mean the same in every dataset.
"""

from dataclasses import dataclass
from typing import Literal

START = -1  # no action has been taken yet
UNLABELLED = -2  # some action was taken, nobody wrote down which
CODES = 2  # how many such codes there are: an embedding has CODES + size rows, row = action + CODES


@dataclass(frozen=True)
class ActionSpace:
    """The actions one may choose from.

    kind: "discrete" (ints 0..size-1, recorded), "latent" (ints 0..size-1, inferred by a latent action model) or
    "none" (unlabelled video; size 0). ``names``: one per action, for people (may be empty). ``keys``: one per action,
    the keyboard key that plays it as browsers name it ("ArrowLeft", "a", " "; may be empty); "" where there is none.
    """

    kind: Literal["discrete", "latent", "none"] = "none"
    size: int = 0
    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def __post_init__(self):
        if (self.kind == "none") != (self.size == 0) or self.size < 0:
            raise ValueError(f"an action space of kind {self.kind!r} cannot have {self.size} actions")
        for field in (self.names, self.keys):
            if field and len(field) != self.size:
                raise ValueError(f"{len(field)} names or keys for {self.size} actions")
