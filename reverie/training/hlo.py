"""What a compiled program does, read from its text (HLO): matmuls, what devices send each other, its largest arrays.

XLA's own cost analysis counts the body of a loop once, and does not exist for GPUs. Here the body of a loop counts once
per iteration, and a conditional as its costliest branch.
"""

import functools
import math
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

MOVES = ("all-to-all", "collective-permute", "ragged-all-to-all")  # what sums nothing
KINDS = ("all-gather", "all-reduce", "reduce-scatter", *MOVES)
NAME = r"%?([\w.-]+)"
HEAD = re.compile(rf"(ENTRY )?{NAME} .*\{{$")
INSTRUCTION = re.compile(rf"\s+(?:ROOT )?{NAME} = (\(.*?\)|\S+) ([a-z][\w-]*)\(")
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
CALLS = re.compile(rf"(?:calls|to_apply)={NAME}")
BRANCHES = re.compile(r"_computations?=\{?((?:%[\w.-]+(?:, )?)+)")
LOOP = re.compile(rf"condition={NAME}, body={NAME}")
CONSTANT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
ADDED = re.compile(rf"= [su]32\[\]\S* add\({NAME}, {NAME}\)")
ITEM = re.compile(r" get-tuple-element\(.*\), index=(\d+)")
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
# mesh['axis_0'=4,'axis_1'=2], perhaps with the order of its devices, and the axes along which a collective runs, or
# parts of them: 'axis_0':(1)2 is its first half.
NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")
# How a TPU's program sends to other slices: the host takes the array and hands back the result.
BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}")
MADE_BY = re.compile(r'op_name="([^"]*)"')
NO_ARRAYS = {
    "parameter",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "constant",
    "while",
    "conditional",
    "optimization-barrier",
}
GEMM = '"__cublas'


class Collective(NamedTuple):
    """What one instruction sends: its kind, bytes per device and step, and a group of devices that take part.

    Bytes are those of the whole array: what a device has after an all-gather, or before a reduce-scatter. ``group``:
    positions in the mesh, in its order; for a permutation, pairs one after the other. ``shapes``: of the result.
    ``sizes``: how many numbers the whole arrays have. ``made_by``: the path of our code's operation, as JAX names it.
    ``slices``: whether it is sent from one slice of TPUs to others, which leaves ``group`` empty.
    """

    kind: str
    bytes: float
    group: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    made_by: str
    slices: bool = False


class Large(NamedTuple):
    """An array of a program: its bytes, its type and shape as text, and the path of the operation that makes it."""

    bytes: int
    shape: str
    made_by: str


class Program(NamedTuple):
    """One device's part of a program.

    ``flops``: of its matmuls and convolutions. ``scoped``: of those among them in the scope that ``read`` was given.
    ``arrays``: the largest first.
    """

    flops: float
    scoped: float
    collectives: list[Collective]
    arrays: list[Large]


@dataclass
class _Part:
    """A computation: its own matmuls and collectives, and the computations it calls, how often, one of each list."""

    flops: list[tuple[float, str]] = field(default_factory=list)  # with the path of what made it
    collectives: list[tuple[str, Collective]] = field(default_factory=list)  # with the channel
    calls: list[tuple[int, list[str]]] = field(default_factory=list)
    arrays: list[Large] = field(default_factory=list)
    constants: dict[str, int] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)  # what is added to a number that is not constant
    items: list[int] = field(default_factory=list)  # those read of tuples
    result: list[str] = field(default_factory=list)  # names in the tuple that it returns
    loops: list[tuple[int, str, str]] = field(default_factory=list)  # trips, 0 if unknown, condition and body


def read(text: str, scope: str = "") -> Program:
    """Return what the text of a compiled program (``compiled.as_text()``) says about one device.

    ``scope``: the name of a ``jax.named_scope``, whose FLOPs are counted apart as well.
    """
    parts, entry, fused = _parts(re.sub(r"/\*.*?\*/", "", text))

    @functools.cache
    def flops(name: str, within: str = "") -> float:
        part = parts[name]
        own = sum(number for number, made_by in part.flops if within in made_by)
        return own + sum(n * max(flops(each, within) for each in branches) for n, branches in part.calls)

    sent: dict[str, Collective] = {}
    arrays: dict[tuple[str, str], Large] = {}

    def visit(name: str, times: int) -> None:
        part = parts[name]
        for channel, each in part.collectives:
            # A TPU's text shows one asynchronous collective in several fusions, all with its channel. Those in the
            # middle lie in loops within the one in which it begins and ends.
            if channel not in sent or times * each.bytes < sent[channel].bytes:
                sent[channel] = each._replace(bytes=times * each.bytes)
        if name not in fused:
            arrays.update({(large.shape, large.made_by): large for large in part.arrays})
        for trips, branches in part.calls:
            visit(max(branches, key=flops), times * trips)

    visit(entry, 1)
    scoped = flops(entry, f"/{scope}/") if scope else 0.0
    return Program(flops(entry), scoped, list(sent.values()), sorted(arrays.values(), reverse=True))


def passing_bytes(compiled: Any) -> int:
    """Return what a compiled program needs on one device besides its arguments."""
    found = compiled.memory_analysis()
    return found.temp_size_in_bytes + max(found.output_size_in_bytes - found.alias_size_in_bytes, 0)


def held_bytes(arguments: Any) -> int:
    """Return the bytes of one device's part of a program's arguments, used or not, whose shardings are known."""
    leaves = jax.tree.leaves(arguments)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def dims(text: str) -> tuple[int, ...]:
    """Return the numbers of "8,16"; () for ""."""
    return tuple(int(number) for number in text.split(",") if number)


def _parts(text: str) -> tuple[dict[str, _Part], str, set[str]]:
    """Return the computations by name, the name of the first, and the names of those inside fusions."""
    parts: dict[str, _Part] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    fused: set[str] = set()
    part, entry = _Part(), ""
    for line in text.splitlines():
        if head := HEAD.match(line):
            part = parts[head[2]] = _Part()
            entry = head[2] if head[1] else entry
        if not (found := INSTRUCTION.match(line)):
            continue
        name, shape, kind = found.groups()
        arrays = ARRAY.findall(shape)
        shapes[name] = dims(arrays[0][1]) if arrays else ()
        called = CALLS.findall(line)
        if number := CONSTANT.search(line):
            part.constants[name] = int(number[1])
        part.items += map(int, ITEM.findall(line))
        added = ADDED.search(line)
        if known := [part.constants[each] for each in (added.groups() if added else ()) if each in part.constants]:
            part.added[name] = known[0]
        if " ROOT " in line and kind == "tuple":
            part.result = re.findall(NAME, line.partition(" tuple(")[2].partition(")")[0])
        if kind == "fusion":
            fused |= {*called}
        part.calls += [(1, [each]) for each in called]
        if loop := LOOP.search(line):
            trips = TRIPS.search(line)
            part.loops.append((int(trips[1]) if trips else 0, loop[1], loop[2]))
        if kind == "conditional":
            part.calls.append((1, [each for names in BRANCHES.findall(line) for each in re.findall(NAME, names)]))
        made_by = each[1] if (each := MADE_BY.search(line)) else ""
        if kind in ("dot", "convolution") or GEMM in line:
            part.flops.append((_matmul(line, kind, shapes, shapes[name]), made_by))
        if (plain := kind.removesuffix("-start")) in KINDS:
            channel = re.search(r"channel_id=(\d+)", line)
            sent = _collective(line, plain, arrays, kind != plain, made_by)
            part.collectives.append((channel[1] if channel else name, sent))
        if kind == "send" and (between := BETWEEN.search(line)):
            what = between[1].lower().replace("_", "-")
            size, shape = math.prod(shapes[name]), (shapes[name],)
            part.collectives.append((name, Collective(what, _size(*arrays[0]), (), shape, (size,), made_by, True)))
        if kind not in NO_ARRAYS:
            part.arrays += [Large(_size(*each), f"{each[0]}[{each[1]}]", made_by) for each in arrays]
    for part in parts.values():
        for trips, condition, body in part.loops:
            part.calls.append((trips or _trips(parts, condition, body), [body]))
    return parts, entry, fused


def _trips(parts: dict[str, _Part], condition: str, body: str) -> int:
    """Return how often a loop runs: it counts up from 0 to the one number in its condition. 1 if there are others.

    (A TPU's text says it nowhere else.) A scan counts by ones. A ring, in which XLA multiplies one part of a matrix
    while the next is sent, counts by twos where it is unrolled.
    """
    inside = [condition, *(name for _, names in parts[condition].calls for name in names)]
    numbers = [number for name in inside for number in parts[name].constants.values()]
    if len(numbers) != 1:
        return 1
    counters, result = parts[condition].items, parts[body].result
    step = parts[body].added.get(result[counters[0]], 1) if len(counters) == 1 and counters[0] < len(result) else 1
    return -(-numbers[0] // max(step, 1))


def _size(dtype: str, shape: str) -> int:
    """Bytes of an array: the number in "bf16" are its bits; "pred" has one byte."""
    bits = re.search(r"\d+", dtype)
    return math.prod(dims(shape)) * int(bits[0] if bits else 8) // 8


def _matmul(line: str, kind: str, shapes: dict[str, tuple[int, ...]], out: tuple[int, ...]) -> float:
    """FLOPs of a dot, of a convolution (a TPU's text has all matmuls as convolutions) or of a call of cuBLAS."""
    # Operands are names, in some versions with their shapes before them.
    inside = line[line.index(f" {kind}(") :]
    names = [each for each in re.findall(NAME, inside.partition(")")[0]) if each in shapes]
    if kind == "convolution":
        return _convolution(line, shapes[names[0]], shapes[names[1]], out)
    axes = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([\d,"]*)[\]}]', line)
    contracted = dims(axes[1].replace('"', "")) if axes else ()
    return 2.0 * math.prod(out) * math.prod(shapes[names[0]][axis] for axis in contracted)


def _convolution(line: str, lhs: tuple[int, ...], rhs: tuple[int, ...], out: tuple[int, ...]) -> float:
    """FLOPs of a convolution: only pairs of an output and a tap that read an element count.

    Batches of matmuls are written as dilated windows, in which nearly all taps read nothing.
    """
    of_lhs, of_rhs, of_out = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", line)[0]
    window = dict(re.findall(r"(\w+)=([\dx_-]+)", (re.search(r"window=\{(.*?)\}", line) or [""])[0]))
    work = 2.0 * out[of_out.index("b")] * out[of_out.index("f")] * rhs[of_rhs.index("i")]
    for axis in range(len(out) - 2):

        def of(name: str, default: str, axis: int = axis) -> int:
            values = window.get(name, "").split("x")
            return int((values[axis] if axis < len(values) and values[axis] else default).partition("_")[0])

        stride, low, dilated = of("stride", "1"), of("pad", "0"), of("lhs_dilate", "1")
        each = ((out, of_out), (rhs, of_rhs), (lhs, of_lhs))
        size, taps, last = (shape[labels.index(str(axis))] for shape, labels in each)
        at = np.arange(size)[:, None] * stride + np.arange(taps)[None] * of("rhs_dilate", "1") - low
        work *= int(((at >= 0) & (at <= (last - 1) * dilated) & (at % dilated == 0)).sum())
    return work


def _collective(line: str, kind: str, arrays: list[tuple[str, str]], starts: bool, made_by: str) -> Collective:
    group, size = _group(line)
    whole, scale = arrays, size if kind == "reduce-scatter" else 1
    if starts and kind != "all-reduce":  # what each device has, what it gets, perhaps counters
        arrays = [each for each in arrays if each[1]]
        half = len(arrays) // 2
        whole, scale = arrays[:half] if kind != "all-gather" else arrays[half:], 1
    sizes = tuple(scale * math.prod(dims(shape)) for _, shape in whole)
    total = float(scale * sum(_size(*each) for each in whole))
    return Collective(kind, total, group, tuple(dims(shape) for _, shape in whole), sizes, made_by)


def _group(line: str) -> tuple[tuple[int, ...], int]:
    """Return the first group of devices of a collective and its size; for a permutation, its pairs."""
    if named := NAMED.search(line):
        along = {name: (before, size) for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named[4])}
        shape, taken = [], []
        for name, size in re.findall(r"'(\w+)'=(\d+)", named[1]):
            before, part = (
                int(number or default) for number, default in zip(along.get(name, ("1", "")), (1, size), strict=True)
            )
            shape += [before, part, int(size) // (before * part)]
            taken += [0, slice(None) if name in along else 0, 0]
        numbers = _numbers(dims(named[2] or str(math.prod(shape))), dims(named[3] or "")).reshape(shape)
        group = numbers[tuple(taken)].ravel()
        return tuple(map(int, group)), len(group)
    if iota := IOTA.search(line):
        groups, size = int(iota[1]), int(iota[2])
        group = _numbers(dims(iota[3]), dims(iota[4] or "")).reshape(groups, size)[0]
        return tuple(map(int, group)), size
    if listed := LISTED.search(line):
        groups = [dims(each) for each in re.findall(r"\{([\d,]*)\}", listed[1])]
        if "source_target_pairs" in line:
            return tuple(number for pair in groups for number in pair), 2
        return groups[0], len(groups[0])
    return (), 1


def _numbers(shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """Return the devices that "[8,2]<=[4,4]T(1,0)" lists: 0, 1, 2, ... in a shape, transposed."""
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose(axes) if axes else numbers
