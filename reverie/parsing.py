"""argparse as every command uses it: errors of one line that suggest a name, and commands with a config's flags."""

import argparse
import functools
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from reverie.errors import ReverieError, did_you_mean
from reverie.flags import Flag, add, flags_of

HELP, ALL = ("-h", "--help"), "--help-all"


class Named(NamedTuple):
    """An argument that names a config, whose fields are further flags of its command.

    known: the names, found without loading any of them. load: returns the config of a name, None where that has none;
    ReverieError for an unknown name. common: which flags the short help shows. default: the name if none is typed.
    """

    argument: str
    known: Callable[[], Iterable[str]]
    load: Callable[[str], Any]
    common: Callable[[Flag], bool]
    default: str = ""


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are ReverieErrors, and which knows only whole names of flags."""

    def __init__(self, *, named: Named | None = None, **more: Any):
        style = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=32)
        super().__init__(add_help=False, allow_abbrev=False, formatter_class=style, **more)
        self.named, self.name, self.config = named, "", None
        self.add_argument(*HELP, action="help", help="show this text")
        if named:
            self.add_argument(ALL, action="help", help=f"with {named.argument.upper()}: every flag of it")

    def error(self, message: str) -> NoReturn:
        """Raise a ReverieError of one line."""
        end = " " if message.endswith(("?", ".")) else ". "
        raise ReverieError(f"{message}{end}'{self.prog} {ALL if self.config else HELP[1]}' lists every flag.")

    def refuse(self, rest: Sequence[str]) -> NoReturn:
        """Raise a ReverieError about words that no argument takes."""
        flag = next((word.partition("=")[0] for word in rest if word.startswith("-")), None)
        if flag is None:
            self.error(f"'{self.prog}' does not take '{rest[0]}'")
        known = [name.lstrip("-") for action in self._actions for name in action.option_strings]
        hint = did_you_mean(flag.lstrip("-"), known)  # the dashes would make all of them alike
        hint = hint.replace("'", "'--", 1) if hint.startswith(" Did") else ""
        self.error(f"'{self.prog}' does not know '{flag}'.{hint}")

    def extend(self, words: Sequence[str]) -> None:
        """Add the flags of the config that ``words`` name, with texts if they ask for help; keep it as ``config``."""
        if self.named is None:
            return
        first = next((word for word in words[:1] if not word.startswith("-")), self.named.default)
        self.name = name = next((word for word in words if word in self.named.known()), first)
        asked, everything = {*HELP, ALL} & set(words), ALL in words
        if not name or (asked and name not in words):
            return
        self.config = self.named.load(name)
        if self.config is None:
            return
        if name in words:
            self.prog = f"{self.prog} {name}"
        self.usage, self.epilog = "%(prog)s [flags]", f"'{self.prog} {ALL}' lists every flag."
        about = getattr(self.config, "about", self.config.__doc__ or "")
        self.description = textwrap.fill(about.partition("\n\n")[0], 79)
        groups: dict[str, Any] = {}
        for flag in flags_of(self.config):
            shown = everything or self.named.common(flag)
            place = flag.path.rpartition(".")[0] if everything else flag.path.partition(".")[0]
            place = place if "." in flag.path else self.named.argument
            if place not in groups:
                groups[place] = self.add_argument_group(f"of the {place}")
            add(groups[place], flag, flag.text if asked and shown else None)

    def chosen(self, args: argparse.Namespace) -> Any:
        """Return the config that was named, None for a command without; ReverieError if its flags are another's."""
        if self.named and (name := getattr(args, self.named.argument)) != self.name:
            self.named.load(name)
            self.error(f"name '{name}' first, and its flags behind it")
        return self.config


def dashed(word: str) -> str:
    """Return a flag with dashes in its name, where underscores were typed."""
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if word.startswith("--") else word


def completed(action: argparse.Action, names: Callable[[], Iterable[str]]) -> None:
    """Let the shell complete an argument by names."""
    vars(action)["completer"] = lambda **_: names()
