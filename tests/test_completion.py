"""Shells complete commands, names and flags: the script for bash is sourced by a bash, as by a user."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
eval "$(reverie --completion bash)"
COMP_LINE="$1" COMP_POINT=${#1} COMP_TYPE=9
read -ra COMP_WORDS <<< "$1"
_python_argcomplete reverie
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def complete(tmp_path):
    """Return a function: a line typed so far -> what bash offers for its last word."""
    script = tmp_path / "bin" / "reverie"
    script.parent.mkdir()
    root = Path(__file__).resolve().parents[1]
    script.write_text(
        f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(root))} exec {shlex.quote(sys.executable)} -m reverie $@\n"
    )
    script.chmod(0o755)
    env = os.environ | {"PATH": f"{script.parent}:{os.environ['PATH']}"}

    def complete(line: str) -> list[str]:
        words = ["bash", "--norc", "-c", ASK, "bash", line]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
        return sorted(word.strip() for word in done.stdout.splitlines())

    return complete


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("reverie tr", ["train"]),
        ("reverie train toy-maskgit-s", ["toy-maskgit-shipped", "toy-maskgit-smooth"]),
        ("reverie train toy-causal --st", ["--steps"]),
        ("reverie train toy-causal --mesh ", ["data", "fsdp", "sequence", "tensor"]),
        ("reverie demo --log w", ["wandb"]),
        ("reverie data sq", ["square"]),
        ("reverie compare coi", ["coinrun"]),
    ],
)
def test_bash_completes(complete, line, offered):
    assert complete(line) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_there_is_a_script_for_other_shells(shell, capsys):
    from reverie import cli

    with pytest.raises(SystemExit):
        cli.main(["--completion", shell])
    script = capsys.readouterr().out
    assert "reverie" in script and "_ARGCOMPLETE" in script and shell in script.lower()
