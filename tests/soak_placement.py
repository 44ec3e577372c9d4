"""Eight devices, every family: what ``test_placement`` asks of four, and memory beside plain data parallelism."""

import os
import subprocess
import sys

import pytest
from test_placement import FAMILIES

pytestmark = pytest.mark.soak

ASK = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
import pytest
from test_placement import Step, check, count_all, family

kind, name, rows = sys.argv[1:]
with pytest.MonkeyPatch.context() as patch:
    count_all(patch)
    step, plain = (Step(family(kind, name), 8, layout, rows=int(rows)) for layout in ("fsdp", "data"))
    for each in (step, plain):
        check(each)
ratio = step.memory.temp_size_in_bytes / plain.memory.temp_size_in_bytes
print(f"{kind}/{name}, {rows} rows a device: temporaries {ratio:.3f} of data parallel's, arguments "
      f"{step.memory.argument_size_in_bytes / plain.memory.argument_size_in_bytes:.3f}", flush=True)
assert ratio < 1.1
"""


def test_eight_devices_share_the_work_of_every_family_and_keep_no_more():
    """Shortcut forcing with so few rows a device that a quarter of them is none, and with four."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for kind, name in FAMILIES:
        for rows in (1, 4) if name == "shortcut" else (2,):
            subprocess.run([sys.executable, "-c", ASK, kind, name, str(rows)], env=env, check=True)
