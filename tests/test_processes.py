"""Jobs of several processes: what one does for all, what all do together, and how they end when one cannot go on."""

from pathlib import Path

import numpy as np
from processes import all_done, job
from test_tokens import Eye, make

REHEARSAL = str(Path(__file__).with_name("rehearsal.py"))

TOGETHER = """
import sys
from pathlib import Path
from reverie.training import checkpoint, sharding
from reverie.training.checkpoint import Writer
assert sharding.connect() and sharding.connect()

import jax, numpy as np
from flax import nnx
from reverie.errors import ReverieError
from test_tokens import Eye, make

place, mesh = Path(sys.argv[1]), sharding.make_mesh()
assert jax.process_count() == 2 and mesh.size == 4

note = place / "note"
sharding.by_first(lambda: note.write_text(note.read_text() + "x" if note.exists() else "x"))
assert note.read_text() == "x"

def fails():
    raise OSError("no room")

try:
    sharding.by_first(fails)
except (OSError, ReverieError) as error:
    assert isinstance(error, OSError) == (jax.process_index() == 0), error
else:
    raise AssertionError("the others got no error")

def fails_there():
    if jax.process_index() == 1:
        raise OSError("no room here")

try:
    sharding.by_all(fails_there)
except (OSError, ReverieError) as error:
    assert ("process 1 of this job has failed" in str(error)) == (jax.process_index() == 0), error
else:
    raise AssertionError("one failed, and nothing was said")

rows = {"x": np.arange(24.0).reshape(8, 3)}
spread = sharding.put(rows, sharding.rows(mesh))
assert {shard.data.shape for shard in spread["x"].addressable_shards} == {(2, 3)}
np.testing.assert_array_equal(sharding.fetch(spread)["x"], rows["x"])

wide = sharding.make_mesh("tensor=4")
assert sharding.rows_here(wide) == (0, 1) and sharding.rows_here(mesh) == (jax.process_index(), 2)
both = sharding.put_batch(wide, rows)
assert {shard.data.shape for shard in both["x"].addressable_shards} == {(8, 3)}
np.testing.assert_array_equal(sharding.fetch(both)["x"], rows["x"])

eye = Eye(back=3)
nnx.update(eye, sharding.put(nnx.state(eye), sharding.rows(mesh)))  # spread, as fsdp has them
assert make(place / "cache", eye, lead=3)[1], "this is the first look"
assert not make(place / "cache", eye, lead=3)[1], "they are kept"

run, everywhere = place / "run", sharding.everywhere(mesh)
with Writer(run, keep=2) as writer:
    for step in (1, 2):
        writer.save(step, {"weights": sharding.put({"w": np.full(4, step, np.float32)}, everywhere)})
assert checkpoint.steps(run) == [1, 2] and checkpoint.check_manifest(run / "checkpoints" / "2")["step"] == 2
if jax.process_index() == 1:
    checkpoint._newest_whole = lambda *_: 1  # as if this one could not read the newest: the first one decides
assert checkpoint.restore(run, lambda *_: everywhere, ("weights",), together=True)[0] == 2
"""


def test_processes_share_work_and_what_one_of_them_does(tmp_path):
    all_done(job("-c", TOGETHER, str(tmp_path), devices=2))
    alone, _ = make(tmp_path / "alone", Eye(back=3), lead=3)
    together, asked = make(tmp_path / "cache", Eye(back=3), lead=3)
    assert not asked, "a cache is the same whoever made it"
    for name, array in alone.arrays.items():
        np.testing.assert_array_equal(together.arrays[name], array, err_msg=name)


def test_a_job_whose_first_process_cannot_go_on_ends(tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    first, second = job(REHEARSAL, "train", "toy-maskgit", "--out", str(tmp_path / "taken" / "run"))
    assert (first[0], second[0]) == (2, 2)
    assert "taken" in first[1] and "process 0 of this job has failed" in second[1]
    assert "Traceback" not in first[1] + second[1]
