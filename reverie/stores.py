"""What ``reverie data`` does with stores that exist: one dataclass each, whose fields are its flags."""

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reverie import config
from reverie.data.cloud import local_copy, refuse_cloud, written
from reverie.data.codecs import AUTO
from reverie.data.combining import append, merge
from reverie.data.copying import opened, packing_of
from reverie.data.filling import MANIFEST
from reverie.data.held_out import leak
from reverie.data.splits import labelled
from reverie.data.subset import Wanted, subset
from reverie.data.writing import write_source
from reverie.errors import ReverieError
from reverie.text_table import table


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Write all episodes of several stores to a new one: reverie data merge OUT A B. Also joins parts of --shard."""

    def run(self, args: argparse.Namespace) -> None:
        """Merge, and say what was done."""
        others = [local_copy(other) for other in args.others]
        made = partial(merge, paths=others, licence=args.licence, codec=args.codec)
        print(written(args.path, f"merge {args.others} {args.codec}", made) or f"{args.path}: uploaded")


@dataclass(frozen=True, kw_only=True)
class Append:
    """Add a store, a folder of recordings or a source's episodes to a store: reverie data append DIR MORE."""

    def run(self, args: argparse.Namespace) -> None:
        """Append, and say what was done."""
        other = _one(args, "append", "MORE")
        refuse_cloud(args.path, "changed")
        with _as_store(str(local_copy(other)), args.path, args.val) as store:
            print(append(args.path, store, args.codec))


@dataclass(frozen=True, kw_only=True)
class Subset(Wanted):
    """Write a part of a store to a new one: reverie data subset DIR OUT --best 0.2."""

    def run(self, args: argparse.Namespace) -> None:
        """Write it, and say what was done."""
        path, out = local_copy(args.path), _one(args, "subset", "OUT")
        made = written(out, f"{path} {self} {args.codec}", lambda new: subset(path, new, self, args.codec))
        print(made or f"{out}: uploaded")


@dataclass(frozen=True, kw_only=True)
class Label:
    """Infer the actions of unlabelled steps: reverie data label DIR OUT --world RUN."""

    world: str = ""  # a run or world of recorded actions, such as one that was trained on this store

    def run(self, args: argparse.Namespace) -> None:
        """Write a copy with all actions, and say how many were inferred and how often the world is right."""
        if not self.world:
            raise ReverieError("say with --world RUN which world infers the actions.")
        from reverie.labelling import label
        from reverie.library import load
        from reverie.world import WorldModel

        path, out, world = local_copy(args.path), _one(args, "label", "OUT"), load(self.world)
        if not isinstance(world, WorldModel):
            raise ReverieError(f"'{self.world}' is a {type(world).__name__}, not a world: name the folder of a run.")
        made = written(out, f"{path} {self} {args.codec}", lambda new: label(opened(path), world, new, args.codec))
        print(made or f"{out}: uploaded")


@dataclass(frozen=True, kw_only=True)
class Show:
    """Look into a store: its splits, actions and notes, and whether held-out frames occur in training."""

    out: str = ""  # a folder for contact sheets and GIFs of episodes, with their actions
    episodes: int = 6  # episodes of each split that are drawn

    def run(self, args: argparse.Namespace) -> None:
        """Print it."""
        store = opened(local_copy(args.path))
        for split, dataset in store.splits.items():
            known = labelled(dataset)
            share = f", {sum(known) / len(known):.0%} of the episodes with actions" if any(known) else ""
            print(f"{split}: {len(dataset.lengths)} episodes, {int(dataset.lengths.sum())} frames{share}")
        if {"train", "val"} <= store.splits.keys():
            share = leak(store.splits["train"], store.splits["val"])
            print(f"leak: {share:.1%} of held-out frames are in train, or nearly so")
        print(packing_of(store))
        print(table(config.flatten(store.any.spec).items()))
        for note in store.any.notes:
            print(f"note: {note}")
        if self.out:
            from reverie.data_pictures import draw

            files = draw(store, Path(self.out), self.episodes)
            print(f"pictures: {len(files)} files in {self.out}")


@dataclass(frozen=True, kw_only=True)
class Browse:
    """See the episodes of a store in the browser: reverie data browse DIR. Nothing is written."""

    port: int = 8000  # port of the page; 0: any free one
    no_browser: bool = False  # do not open a browser
    allow_host: tuple[str, ...] = ()  # further names of this machine, such as that of a proxy or tunnel

    def run(self, args: argparse.Namespace) -> None:
        """Serve the page until Ctrl-C."""
        from reverie.play.browsing import browse

        browse(local_copy(args.path), self.port, not self.no_browser, self.allow_host)


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Fetch OpenAI's Minecraft recordings (VPT): reverie data fetch FOLDER INDEX, an index file or its address."""

    count: int = 0  # recordings to fetch, at most; 0: all of the index
    first: int = 0  # number of the first one
    workers: int = 4  # files that are fetched at a time

    def run(self, args: argparse.Namespace) -> None:
        """Fetch, and say what to do next."""
        from reverie.data.fetching import fetch

        print(fetch(_one(args, "fetch", "INDEX"), args.path, **dataclasses.asdict(self)))
        print(f"'reverie data vpt OUT --path {args.path}' makes a store of them")


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Look for what is wrong with a store: copies, frozen or black clips, cuts, actions beside their frames, leaks."""

    json: bool = False  # one JSON object on stdout
    html: bool = False  # also write doctor.html with pictures, into the store
    quarantine: bool = False  # set the episodes with faults aside, without losing them
    release: bool = False  # first put back what was set aside

    def run(self, args: argparse.Namespace) -> None:
        """Examine, and print a table or JSON."""
        from reverie.data.doctor.faults import examine
        from reverie.data.doctor.quarantine import release, set_aside

        if self.quarantine or self.release or self.html:
            refuse_cloud(args.path, "changed")
        store = opened(local_copy(args.path))
        if (self.quarantine or self.release) and not (args.path / MANIFEST).is_file():
            raise ReverieError(f"'{args.path}' is one file or a mixture: nothing can be set aside in it.")
        if self.release:
            print(f"{release(store)} episodes put back", file=sys.stderr)
            store = opened(args.path)
        found = examine(store)
        if self.html:
            from reverie.doctor_page import write

            page = args.path / "doctor.html" if args.path.is_dir() else args.path.with_suffix(".doctor.html")
            write(page, store, found)
            print(f"pictures: {page}", file=sys.stderr)
        count = set_aside(store, found) if self.quarantine else 0
        if self.json:
            faults = [{**fault._asdict(), "aside": list(fault.aside)} for fault in found]
            episodes = {split: len(part.lengths) for split, part in store.splits.items()}
            print(json.dumps({"store": str(args.path), "episodes": episodes, "faults": faults, "set_aside": count}))
            return
        print(table((fault.fault, fault.text) for fault in found) if found else "no fault was found")
        if count:
            print(f"{count} episodes set aside; 'reverie data doctor {args.path} --release' puts them back")


TOOLS: dict[str, Any] = {
    cls.__name__.lower(): cls for cls in (Merge, Append, Subset, Label, Doctor, Show, Browse, Fetch)
}


def run(args: argparse.Namespace, tool: Any) -> None:
    """Run a tool; ReverieError if it takes no further paths and some were given."""
    writes = isinstance(tool, Merge | Append | Subset | Label)
    if args.shard or args.beam or (args.others and not (writes or isinstance(tool, Fetch))):
        raise ReverieError(f"'reverie data {args.source}' takes one store, and no --shard or --beam.")
    if args.codec != AUTO and not writes:
        raise ReverieError(f"'reverie data {args.source}' writes no frames, so it takes no --codec.")
    tool.run(args)


def _one(args: argparse.Namespace, name: str, what: str) -> str:
    if len(args.others) != 1:
        raise ReverieError(f"'reverie data {name}' takes two paths: 'reverie data {name} DIR {what}'.")
    return args.others[0]


@contextlib.contextmanager
def _as_store(other: str, path: Path, val: float):
    """Yield a store as it is, or anything else that episodes come from as a store for the time being."""
    if (Path(other) / MANIFEST).is_file():
        yield opened(other)
        return
    from reverie.recorded import source_of  # loads JAX

    source, spec = source_of(other, Path(other)), opened(path).any.spec
    if source is None:
        yield opened(other)
        return
    has = {field.name for field in dataclasses.fields(source)}
    fitted = {"size": spec.frame[:2], "fps": spec.fps}
    source = dataclasses.replace(source, **{name: value for name, value in fitted.items() if name in has})
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".part", dir=path.parent) as folder:
        made = opened(write_source(Path(folder) / "store", source, val=val))
        yield dataclasses.replace(made, path=Path(other))  # it is known by the user's name
