"""Episodes set aside: the manifest notes them, and datasets leave them out. Their records stay where they are."""

from collections.abc import Sequence

from reverie.checksums import write_json
from reverie.data.copying import Store
from reverie.data.doctor.faults import Fault
from reverie.data.filling import ASIDE, MANIFEST
from reverie.errors import ReverieError


def set_aside(store: Store, found: Sequence[Fault]) -> int:
    """Set aside the episodes of faults that single episodes have; return how many there were.

    The store is a folder. ReverieError if that left a split without episodes.
    """
    reasons: dict[str, dict[str, str]] = {}
    for fault in found:
        for split, episode in fault.aside:
            reasons.setdefault(split, {}).setdefault(str(store.splits[split].own[episode]), fault.fault)
    for split, numbers in reasons.items():
        if len(numbers) == len(store.splits[split].lengths):
            raise ReverieError(f"every episode of '{split}' has a fault: nothing was set aside; write the store again.")
    if reasons:
        _write(store, {split: {**store.splits[split].aside, **numbers} for split, numbers in reasons.items()})
    return sum(map(len, reasons.values()))


def release(store: Store) -> int:
    """Put back every episode that was set aside; return how many there were."""
    held = sum(len(dataset.aside) for dataset in store.splits.values())
    if held:
        _write(store, {split: {} for split in store.splits})
    return held


def _write(store: Store, aside: dict[str, dict[str, str]]) -> None:
    splits = {}
    for split, part in store.any.manifest["splits"].items():
        rest = {key: value for key, value in part.items() if key != ASIDE}
        numbers = aside.get(split, part.get(ASIDE, {}))
        splits[split] = {**rest, **({ASIDE: numbers} if numbers else {})}
    write_json(store.path / MANIFEST, {**store.any.manifest, "splits": splits})
