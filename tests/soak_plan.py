"""Plans for real accelerators, for which the extras ``plan-tpu`` and ``plan-gpu`` have compilers."""

import json

import pytest

from reverie import cli, planning
from reverie.training.chips import CHIPS, topology

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("name", ["v5e:2x4", "h100:8"])
def test_a_small_step_is_compiled_for_an_accelerator(name, capsys):
    """bfloat16 halves what is sent, every device computes its share, and memory is far below the limit."""
    extra = topology(name).chip.extra
    if any(planning._found(module) is None for module in planning.MODULES[extra]):
        pytest.skip(f"needs the extra {extra}")
    words = ["plan", "coinrun-maskgit-tiny", "--topology", name, "--mesh", "fsdp", "--batch", "8", "--json"]
    assert cli.main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["flops_per_device"] * 8 == pytest.approx(facts["flops_of_costliest_step"], rel=0.02)
    assert facts["flops_of_optimizer"] == facts["optimizer_flops_per_device"] == 0, "AdamW multiplies no matrices"
    assert facts["activations_sent"] < 0.01 * sum(each["bytes"] for each in facts["collectives"])
    assert 0 < facts["bytes_per_device"]["total"] < CHIPS[name.partition(":")[0]].memory / 2


def test_between_slices_gradients_alone_are_sent(capsys):
    """In bfloat16: with weights sharded in two slices, a device sends its part of them, or small ones whole."""
    if planning._found("libtpu") is None:
        pytest.skip("needs the extra plan-tpu")
    words = ["plan", "coinrun-maskgit-tiny", "--topology", "2xv5e:2x4", "--mesh", "data=2,fsdp", "--batch", "32"]
    assert cli.main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    between = {each["kind"]: each["bytes"] for each in facts["collectives"] if each["axis"] == "slices"}
    assert between.keys() == {"all-reduce"} and facts["activations_sent"] == 0
    assert 2 / 8 <= between["all-reduce"] / facts["parameters"] <= 2


def test_a_model_that_is_too_large_is_refused_with_its_number(capsys):
    if planning._found("libtpu") is None:
        pytest.skip("needs the extra plan-tpu")
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "minecraft-shortcut-2b", "--topology", "v5e:4x4", "--mesh", "data", "--json"])
    assert stop.value.code == 1
    sizes = json.loads(capsys.readouterr().out)["bytes_per_device"]
    assert sizes["total"] > sizes["limit"] == 15.75 * 2**30


def test_on_a_mesh_of_two_axes_the_model_is_shared_and_no_activations_are_sent(capsys):
    """Muon repeats its iterations on some devices, which is counted apart."""
    assert cli.main(["plan", "toy-maskgit", "--topology", "cpu:8", "--mesh", "data=2,fsdp=4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    muon, here = facts["flops_of_optimizer"], facts["optimizer_flops_per_device"]
    assert (facts["flops_per_device"] - here) * 8 == pytest.approx(facts["flops_of_costliest_step"] - muon, rel=0.02)
    assert muon / 8 < here < muon and facts["activations_sent"] == 0
