"""Plans for machines that are not there: the program is the one that trains, and its numbers are read rightly."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from reverie import cli, config, planning
from reverie.nn.compiled import compiler_options
from reverie.nn.precision import compute_dtype
from reverie.nn.target import Target, target, traced_for
from reverie.presets import preset
from reverie.training import chips, hlo, plan, sharding
from reverie.training.checkpoint import structure, untrained_models
from reverie.training.chips import topology
from reverie.training.engine import Run
from reverie.training.objectives import TokenizerObjective
from reverie.training.plan import axis_of, plan_step, refused

# The smallest matrices that are divided among devices, in a scan of two groups.
TINY = {"depth": 2, "time_every": 1, "heads": 1, "hidden": 256, "scan": True}
FLAGS = [f"--dynamics.objective.dynamics.transformer.{name}={value}" for name, value in TINY.items()]


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """The facts of a small step on eight CPU devices under fsdp, through the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("plan"))
        printed: list[str] = []
        patch.setattr("builtins.print", lambda text, **_: printed.append(text))
        words = ["plan", "toy-diffusion", "--topology", "cpu:8", "--mesh", "fsdp", "--json", *FLAGS]
        assert cli.main(words) == 0
        assert not list(Path().iterdir())
    return json.loads(printed[-1])


def test_a_device_computes_its_share_and_is_sent_no_activations(facts):
    """All but Muon, which repeats some of its iterations on every device."""
    muon, here = facts["flops_of_optimizer"], facts["optimizer_flops_per_device"]
    assert (facts["flops_per_device"] - here) * 8 == pytest.approx(facts["flops_per_step"] - muon, rel=0.01)
    assert 0 < muon / 8 <= here <= muon
    assert facts["activations_sent"] == 0
    assert {each["kind"] for each in facts["collectives"]} == {"all-gather", "all-reduce"}
    assert {each["axis"] for each in facts["collectives"]} == {"fsdp"}
    assert facts["copied"] == {} and facts["compile_seconds"] > 0


def test_memory_is_what_the_compiler_says(facts):
    """Arguments by shapes and shardings are those that XLA counts, without frozen parts, which a step does not read."""
    sizes = facts["bytes_per_device"]
    assert sizes["arguments"] - facts["parts"]["frozen parts"] == pytest.approx(facts["read"], rel=0.01)
    assert sizes["total"] == sizes["arguments"] + sizes["temporaries"]
    assert facts["fits"] and sizes["total"] < sizes["limit"]


def test_the_report_marks_what_is_exact_and_what_is_not(facts):
    run = config.replace(preset("toy-diffusion").dynamics, mesh="fsdp")
    text = planning.report("toy-diffusion", "dynamics", run, topology("v5e:2x4"), facts)
    lines = text.splitlines()
    assert re.search("of which the model .*, x1.00 of its share\n.*of which the optimiser .*, x[1-8]", text)
    assert lines[0] == "toy-diffusion, dynamics: 8 x 4 frames per step, mesh fsdp, on v5e:2x4"
    assert all(line.split()[0] in ("exact", "compiler", "estimate") for line in lines[3:])
    assert any(line.startswith("compiler  all-gather along fsdp") for line in lines)
    assert any("at 40%" in line for line in lines)


def test_what_does_not_fit_says_by_how_much_and_what_would_help(monkeypatch, capsys):
    """One device of a CPU with a megabyte of memory, by tracing alone; nothing is compiled."""
    monkeypatch.setattr(chips.Topology, "limit", 1e6)
    recipe: Any = preset("toy-maskgit")
    objective = TokenizerObjective(tokenizer=recipe.tokenizer.objective.tokenizer)
    run = Run(objective=objective, batch=32, length=2)
    facts = plan_step(run, recipe.source.spec(), Path("tokenizer"), topology("cpu:4"), quick=True)
    assert not facts["fits"] and facts["bytes_per_device"]["total"] > 1e6
    monkeypatch.setattr(planning, "plan", lambda *_: facts)
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "toy-maskgit", "--stage", "tokenizer", "--topology", "cpu:4"])
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said and "B too many" in said
    assert "--tokenizer.objective.tokenizer.encoder.remat dots" in said and "--tokenizer.accumulate 8" in said


def test_what_the_host_keeps_is_counted_apart():
    """Traced, for one device: with ``remat offload`` the host keeps inputs of layers, which the device kept before."""
    recipe: Any = preset("toy-diffusion")
    found = []
    for remat in ("layers", "offload"):
        net: Any = replace(recipe.dynamics.objective.dynamics.transformer, **TINY, remat=remat)
        run = config.replace(recipe.dynamics, **{"objective.dynamics.transformer": net})
        with untrained_models() as models:
            place = Path("dynamics").absolute()
            models[place.parent / "tokenizer"] = structure(recipe.tokenizer, recipe.source.spec(), place)
            found.append(plan_step(run, recipe.source.spec(), place, topology("cpu:1"), quick=True))
    layers, offload = found
    saved = layers["bytes_per_device"]["temporaries"] - offload["bytes_per_device"]["temporaries"]
    assert layers["bytes_on_host"] == 0 < saved <= offload["bytes_on_host"]
    text = planning.report("toy-diffusion", "dynamics", run, topology("cpu:1"), offload)
    assert any(line.startswith("estimate  kept by the host, per device") for line in text.splitlines())


def test_programs_are_traced_for_the_target():
    assert target().platform == "cpu" and compute_dtype("auto") == np.float32
    with traced_for(Target("tpu")):
        assert compute_dtype("auto") == jax.numpy.bfloat16
        assert compiler_options() is None
    assert compute_dtype("auto") == np.float32 and compiler_options() is not None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--topology", "v5:4x4"], "there is no 'v5' to plan for. Did you mean 'v5"),
        (["--topology", "v5e:16"], "'v5e:16' is not a topology: write it like 'v5e:4x4', with 2 numbers above 0."),
        (["--topology", "2xh100:8"], "'2xh100:8': only TPUs form slices; write 'h100:16' for as many h100."),
        (["--topology", "h100:12"], "'h100:12': more than 8 GPUs are whole machines of 8."),
        (["--topology", "cpu:8", "--stage", "dynamic"], "there is no stage 'dynamic' here. Did you mean 'dynamics'?"),
        (
            ["--topology", "v5e:256x256"],
            "'v5e:256x256' has 65536 devices, more than the 10000",
        ),
        (["--topology", "v5e:4x4"], "needs the extra plan-tpu: pip install 'reverie-worlds[plan-tpu]'."),
        (["--topology", "h100:8"], "needs the extra plan-gpu: pip install 'reverie-worlds[plan-gpu]'."),
        (["--topology", "cpu:3"], "a batch of 8 cannot be shared by 3 devices: make it a multiple of 3."),
        (["--topology", "cpu:3", "--exact"], "a step with --exact is many small programs, which are not planned"),
        (["--topology", "cpu:8", "--time-limit", "0"], "not compiled after 0 minutes: raise --time-limit, or use"),
    ],
)
def test_what_cannot_be_planned_says_so_in_one_line(words, line, monkeypatch, capsys):
    monkeypatch.setattr(planning, "_found", lambda module: None)
    if "cpu:3" in words:  # as the process that compiles does, without starting it

        def planned(recipe, stage, where, *_):
            return plan_step(recipe.dynamics, recipe.source.spec(), Path(), where, False)

        monkeypatch.setattr(planning, "plan", planned)
    assert cli.main(["plan", "toy-maskgit", *words]) == 2
    assert line in capsys.readouterr().err


def test_the_number_in_a_refusal():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (18.39G) exceeds "
        "available HBM (15.75G)."
    )
    assert refused(message) == 18.39 * 2**30
    assert refused("INTERNAL: a pass failed") == 0


TEXT = """HloModule jit_step, entry_computation_layout={()->()}

%inner (p: f32[8,4]) -> f32[8,16] {
  %p = f32[8,4]{1,0} parameter(0)
  %w = f32[4,16]{1,0} constant({...})
  ROOT %dot.1 = f32[8,16]{1,0} dot(%p, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (s: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %s = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%s), index=1
  %fusion.1 = f32[8,16]{1,0} fusion(%x), kind=kOutput, calls=%inner
  %send = f32[8,4]{1,0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%x, %send)
}

%small (q: f32[8,4]) -> f32[8,4] {
  ROOT %q = f32[8,4]{1,0} parameter(0)
}

%large (r: f32[8,4]) -> f32[8,4] {
  %r = f32[8,4]{1,0} parameter(0)
  %v = f32[4,4]{1,0} constant({...})
  ROOT %custom = f32[8,4] custom-call(%r, %v), target="__cublas$gemm", config={"lhs_contracting_dimensions":["1"]}
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %k = f32[4,6]{1,0} parameter(1)
  %loop = (s32[], f32[8,4]{1,0}) while(%a), condition=%small, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %picked = f32[8,4]{1,0} conditional(%pred, %a, %a), true_computation=%large, false_computation=%small
  %conv = f32[8,6]{1,0} convolution(%a, %k), dim_labels=bf_io->bf
  %start = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%a), channel_id=2, replica_groups=[1,4]<=[4]
  %go = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,2},{2,0}}
  %part = ((f32[8,4]{1,0}), (f32[4,4]{1,0})) reduce-scatter-start(%a), channel_id=9, replica_groups={{0,2},{1,3}}
  %sum = f32[2,4]{1,0} reduce-scatter(%a), channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}
  %out = (bf16[2,4]{1,0}, u32[], token[]) send(%a), channel_id=9, attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %all = bf16[8,4]{1,0} all-reduce(%a), replica_groups={{0,2},{1,3}}, metadata={op_name="jit(step)/sum"}
}
"""


def test_a_compiled_program_is_read_with_its_loops_and_branches():
    found = hlo.read(TEXT)
    assert found.flops == 5 * 2 * 8 * 16 * 4 + 2 * 8 * 4 * 4 + 2 * 8 * 6 * 4
    mesh: Any = SimpleNamespace(devices=np.arange(4).reshape(2, 2), axis_names=("data", "fsdp"))
    sent = sorted((each.kind, each.bytes, axis_of(mesh, each)) for each in found.collectives)
    assert sent == [
        ("all-gather", 64, "data+fsdp"),
        ("all-reduce", 16, "slices"),
        ("all-reduce", 64, "data"),
        ("collective-permute", 128, "data"),
        ("collective-permute", 5 * 128, "fsdp"),
        ("reduce-scatter", 64, "fsdp"),
        ("reduce-scatter", 128, "data"),
    ]
    assert {each.sizes for each in found.collectives if each.kind == "reduce-scatter"} == {(16,), (32,)}
    assert found.arrays[0] == hlo.Large(512, "f32[8,16]", "")
    assert hlo.Large(64, "bf16[8,4]", "jit(step)/sum") in found.arrays


RING = """HloModule jit_step, is_scheduled=true

%matmul (p: bf16[30,8], q: bf16[30,2,4]) -> bf16[8,2,4] {
  %p = bf16[30,8]{1,0} parameter(0)
  %q = bf16[30,2,4]{0,2,1} parameter(1)
  %r = bf16[30,8,1]{1,0,2} bitcast(%p)
  ROOT %conv = bf16[8,2,4] convolution(%r, %q), window={size=2 pad=1_1 rhs_reversal=1}, dim_labels=fb0_i0o->b0f, MADE
}

%cond (s: (bf16[30,8], bf16[30,2,4], bf16[8,4], u32[])) -> pred[] {
  %four = u32[]{:T(128)} constant(4), metadata={op_name="jit(step)/transpose(jvp(mlp))/dot_general"}
  %s = (bf16[30,8]{1,0}, bf16[30,2,4]{0,2,1}, bf16[8,4]{1,0}, u32[]{:T(128)}) parameter(0)
  %at = u32[]{:T(128)} get-tuple-element(%s), index=3
  ROOT %less = pred[]{:T(512)} compare(%at, %four), direction=LT
}

%body (s: (bf16[30,8], bf16[30,2,4], bf16[8,4], u32[])) -> (bf16[30,8], bf16[30,2,4], bf16[8,4], u32[]) {
  %seven..sunk = u32[]{:T(128)} constant(7)
  %two..sunk = u32[]{:T(128)} constant(2)
  %s.1 = (bf16[30,8]{1,0}, bf16[30,2,4]{0,2,1}, bf16[8,4]{1,0}, u32[]{:T(128)}) parameter(0)
  %x = bf16[30,8]{1,0} get-tuple-element(%s.1), index=0
  %w = bf16[30,2,4]{0,2,1} get-tuple-element(%s.1), index=1
  %sum = bf16[8,4]{1,0} get-tuple-element(%s.1), index=2
  %at.1 = u32[]{:T(128)} get-tuple-element(%s.1), index=3
  %place = u32[]{:T(128)} add(%at.1, %seven..sunk)
  %one = bf16[8,2,4]{0,2,1} fusion(%x, %w), kind=kOutput, calls=%matmul
  %sent = bf16[8,4]{1,0} collective-permute(%sum), channel_id=1, source_target_pairs={{0,1},{1,0}}, MADE
  %other = bf16[8,2,4]{0,2,1} fusion(%x, %w), kind=kOutput, calls=%matmul
  %next = u32[]{:T(128)} add(%at.1, %two..sunk)
  ROOT %t = (bf16[30,8], bf16[30,2,4], bf16[8,4], u32[]{:T(128)}) tuple(%x, %w, %sent, /*index=3*/%next)
}

ENTRY %main (a: bf16[5,6,7]) -> bf16[5,6,9] {
  %a = bf16[5,6,7]{2,1,0} parameter(0)
  %k = bf16[5,7,9]{2,1,0} parameter(1)
  %loop = (bf16[30,8]{1,0}, bf16[30,2,4]{0,2,1}, bf16[8,4]{1,0}, u32[]{:T(128)}) while(%a), condition=%cond, body=%body
  ROOT %each = bf16[5,6,9]{2,1,0} convolution(%a, %k), window={size=5 stride=4 lhs_dilate=5}, dim_labels=0bf_0io->0bf
}
""".replace("MADE", 'metadata={op_name="jit(step)/transpose(jvp(mlp))/dot_general"}')


def test_matmuls_of_a_tpu_count_as_often_as_they_run_and_as_what_they_are():
    """A ring of two parts at a time, whose counter goes 0, 2; and a batch of five matmuls, as a dilated convolution."""
    found, ring = hlo.read(RING), 2 * 2 * (2 * 30 * 8 * 8)
    assert found.flops == ring + 5 * 2 * 6 * 7 * 9
    assert hlo.read(RING.replace("step)/", "step)/optimizer/"), "optimizer").scoped == ring
    assert [(each.kind, each.bytes) for each in found.collectives] == [("collective-permute", 2 * 64)]


def test_gradients_that_a_ring_sums_are_no_activations():
    """A device's part of one layer of a stack. The same sent by anything but a matmul, or another size, is."""
    mesh = sharding.make_mesh("fsdp", jax.devices()[:4])
    parts = jax.sharding.NamedSharding(mesh, jax.P(None, "fsdp"))
    state = [jax.ShapeDtypeStruct((3, 8, 4096), np.float32, sharding=parts)]
    sent = hlo.read(RING).collectives[0]._replace(sizes=(2 * 4096,))
    assert plan._of_weights(sent, state)
    assert not plan._of_weights(sent._replace(sizes=(4100,)), state)
    assert not plan._of_weights(sent._replace(made_by="jit(step)/ppermute"), state)


@pytest.mark.parametrize(
    ("groups", "axis"),
    [
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_0'}", "fsdp"),
        ("mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", "data"),
        ("mesh['axis_0'=4] {'axis_0':(1)2}", "data"),
        ("mesh['axis_0'=4] {'axis_0':(2)2}", "fsdp"),
        ("[2,2]<=[2,2]T(1,0)", "data"),
        ("{{0,1},{2,3}}", "fsdp"),
    ],
)
def test_the_axis_of_a_group_of_devices(groups, axis):
    """On a mesh of data=2,fsdp=2, whose devices are numbered along fsdp first."""
    line = f"  ROOT %all = f32[8]{{0}} all-reduce(%a), channel_id=1, replica_groups={groups}"
    mesh: Any = SimpleNamespace(devices=np.arange(4).reshape(2, 2), axis_names=("data", "fsdp"))
    assert axis_of(mesh, hlo.read(f"ENTRY %main () -> f32[8] {{\n{line}\n}}").collectives[0]) == axis
