"""The script for a lent accelerator works here, at the smallest sizes, and goes on where it stopped."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from contracts.tiny import ACTIONS, FRAME, SMALL, tiny

from benchmarks import accelerator
from reverie.data.episode import Spec
from reverie.errors import ReverieError
from reverie.models.dynamics import families
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.presets import presets
from reverie.training.engine import Run
from reverie.training.objectives import TokenizerObjective


def test_parity_says_how_far_bfloat16_is_from_float32():
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention promotes bfloat16
        facts = accelerator.parity("maskgit", replace(SMALL, depth=1), (2, 2), length=3)
    assert 0 < abs(facts["loss_bfloat16"]) < 0.05 and 1e-4 < facts["gradient_bfloat16"] < 0.1
    assert facts["loss_float32"] > 0 and facts["gradient_float32"] == 0
    assert "gradient_flash" not in facts and "compute capability is 0.0" in facts["no_flash"]


def test_a_step_is_timed_and_its_memory_stands_beside_what_was_planned(monkeypatch):
    objective = TokenizerObjective(tokenizer=tiny(VQVAEConfig(), replace(SMALL, depth=1)))
    run, spec = Run(objective=objective, batch=2, length=2), Spec(FRAME, ACTIONS, 7.0, "noise")
    facts = accelerator.training(run, spec, seconds=0.01)
    assert facts["frames_per_second"] == pytest.approx(4e3 / facts["step_ms"])
    assert facts["flops"] > 0 and np.isfinite(facts["loss"])
    assert facts["planned_bytes"] / facts["estimated_bytes"] == pytest.approx(1, abs=0.5)
    assert facts["mfu"] is facts["peak_bytes"] is None, "a CPU has no known peak, and no allocator of its own"
    monkeypatch.setattr(accelerator, "_memory", lambda name: facts["estimated_bytes"] // 2)
    assert accelerator.training(run, spec, seconds=0.01)["skipped"] == "needs about 0 GB of 0"


def test_every_family_and_preset_has_a_part():
    every = accelerator.parts()
    assert {f"parity {name}" for name in families()} | {f"train {name}" for name in presets()} <= {*every}
    assert next(iter(every)) == "machine" and {*accelerator.parts(short=True)} == {*accelerator.SHORT}


def test_it_goes_on_with_the_parts_that_are_missing(tmp_path):
    out, ran, device = tmp_path / "found.json", [], "a card"

    def run(name, seconds):
        assert 0 < seconds <= accelerator.LONGEST
        ran.append(name)
        if name == "machine":
            return {"device": device}
        return {"error": "lost"} if name == "b" and ran.count("b") == 1 else {"value": len(ran)}

    names = ["machine", "a", "b", "c"]
    assert accelerator.measure(out, 0, names, run) == names and not ran, "there was no time"
    assert accelerator.measure(out, 1, names, run) == ["b"]
    assert json.loads(out.read_text("utf-8"))["b"] == {"error": "lost"}
    assert accelerator.measure(out, 1, names, run) == []
    assert ran == ["machine", "a", "b", "c", "machine", "b"]
    device, before = "another card", out.read_text("utf-8")
    with pytest.raises(ReverieError, match="is of 'a card', and here is 'another card': choose another file"):
        accelerator.measure(out, 1, names, run)
    assert out.read_text("utf-8") == before
    for text, said in (("[1]", "holds no results of this script"), ("{", "JSON")):
        out.write_text(text, "utf-8")
        with pytest.raises(ReverieError, match=said):
            accelerator.measure(out, 1, names, run)


def test_a_part_has_a_process_and_a_time_limit_of_its_own():
    facts = accelerator.in_child("machine", 300, short=True)
    assert facts["device"] == "cpu" and facts["matmul_flops"] > 1e6 and facts["memory"] is None
    assert accelerator.in_child("machine", 0.01, short=True) == {"error": "not finished after 0 s"}
