"""The doctor's report as a page: what is wrong, with pictures of the episodes that it is about."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from reverie.data.copying import Store
from reverie.data.doctor.faults import Fault
from reverie.data_pictures import moments, sheet
from reverie.errors import ReverieError
from reverie.evaluation.page import node, picture, section, table, write_page

SHOWN = 6  # episodes of a fault


def write(path: Path, store: Store, found: Sequence[Fault]) -> None:
    """Write the page."""
    title = f"Check of {store.path.name}"
    write_page(path, title, _parts(store, found))


def _parts(store: Store, found: Sequence[Fault]) -> Iterator[Element]:
    spec = store.any.spec
    height, width, _ = spec.frame
    counts = ", ".join(f"{len(part.lengths)} episodes in {split}" for split, part in store.splits.items())
    yield node("p", f"{counts}; frames of {width} x {height} pixels from {spec.source}.", class_="dim")
    if not found:
        yield node("p", "No fault was found.")
        return
    rows = [(fault.fault, str(len(fault.episodes) or "all"), fault.text) for fault in found]
    yield table(("fault", "episodes", "meaning"), rows)
    for fault in found:
        if fault.episodes:
            yield section(fault.fault, node("p", fault.text), *_pictures(store, fault))


def _pictures(store: Store, fault: Fault) -> Iterator[Element]:
    clips = []
    for split, episode in fault.episodes[:SHOWN]:
        try:
            clips.append((f"{split} {episode}", moments(store.splits[split], episode)[0]))
        except ReverieError as error:
            yield node("p", f"{split} {episode} cannot be shown: {error}", class_="bad")
    if clips:
        yield picture(sheet(clips), f"episodes: {fault.fault}", "each row is an episode, over time", wide=True)
