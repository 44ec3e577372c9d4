"""``--exact`` as a user types it: the same bits on 1, 2, 4 and 8 devices, and from 8 to 2 to 4."""

import pytest
from processes import all_done, job
from test_processes import REHEARSAL

pytestmark = pytest.mark.soak


def test_a_world_has_the_same_bits_on_any_number_of_devices(tmp_path):
    logs = {}
    for devices in (1, 2, 4, 8):
        out = tmp_path / str(devices)
        all_done(job(REHEARSAL, "train", "toy-maskgit", "--exact", "--out", str(out), processes=1, devices=devices))
        logs[devices] = [(out / stage / "metrics.jsonl").read_bytes() for stage in ("tokenizer", "dynamics")]
    assert logs[1][0] and logs[1] == logs[2] == logs[4] == logs[8]


def test_a_run_goes_on_on_other_numbers_of_devices_with_the_same_bits(tmp_path):
    def train(out: str, steps: int, devices: int) -> bytes:
        code = (
            "from reverie.training.exact import pin_threads; pin_threads(); from toy_objective import *; "
            f"fit(toy_run({steps}, ToyObjective(width=128), exact=True, batch=8), {str(tmp_path / out)!r}, "
            "dataset=toy_dataset())"
        )
        all_done(job("-c", code, processes=1, devices=devices))
        return (tmp_path / out / "metrics.jsonl").read_bytes()

    for steps, devices in ((2, 8), (4, 2), (6, 4)):
        moved = train("moved", steps, devices)
    assert moved == train("straight", 6, 1)
