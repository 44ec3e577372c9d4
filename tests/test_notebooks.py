"""The notebooks run: every code cell in order, with small parameters, one notebook after the other in one folder."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import pytest

from reverie import config

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
LITTLE = {"EPISODES": 12, "CLIPS": 2, "STEPS": {"tokenizer": 2, "dynamics": 2, "surgery": 2}}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Return a function: the name of a notebook -> the variables that it leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebooks"))
        patch.setattr(plt, "show", lambda: plt.close("all"))
        patch.setattr(config, "packages", set(config.packages))

        def opened(name: str) -> dict[str, Any]:
            module = ModuleType(f"notebook_{name.replace('-', '_')}")
            patch.setitem(sys.modules, module.__name__, module)
            cells = json.loads((FOLDER / f"{name}.ipynb").read_text("utf8"))["cells"]
            for number, cell in enumerate(cells):
                if cell["cell_type"] == "code":
                    exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), vars(module))
                if "parameters" in cell["metadata"].get("tags", ()):
                    vars(module).update((key, value) for key, value in LITTLE.items() if key in vars(module))
            return vars(module)

        yield opened


def test_a_world_is_trained_measured_and_stepped_into(opened):
    found = opened("train-and-look")
    assert len(found["numbers"]["delta_psnr"]) == 8 and found["numbers"]["clips"] == 2


@pytest.mark.soak
def test_dynamics_of_a_notebook_take_the_place_of_ours(opened):
    found = opened("your-own-dynamics")
    assert type(found["session"].world.dynamics) is found["LastFrame"] and found["numbers"]["passes"] is None
    assert Path("runs/notebook/compared/mine/eval.json").is_file()


def test_renamed_and_widened_weights_are_taken_and_dropped_ones_are_new(opened):
    found = opened("model-surgery")
    report = json.loads(Path("runs/notebook/surgery/start.json").read_text("utf8"))
    assert sorted(report["new"]) == ["pixels.bias", "pixels.kernel"] == sorted(found["dropped"])
    assert report["another shape"] == report["not used"] == {}
    assert report["taken"]["quantiser.book"] == [2 * found["codes"], 16]
