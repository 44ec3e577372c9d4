"""Plain English in README, docs and docstrings: short sentences, and no words for which the field has better ones.

``python tests/test_prose.py --seed 13 --count 40`` draws sentences of pages and whole docstrings, to be read aloud.
"""

import ast
import io
import random
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / "docs" / "log.md"  # a notebook: it keeps its voice
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [page for page in sorted((ROOT / "docs").rglob("*.md")) if page != LOG]
CODE_FILES = [file for folder in ("reverie", "benchmarks") for file in sorted((ROOT / folder).rglob("*.py"))]
LONGEST, MEAN = 35, 18.0  # words of a sentence
BANNED = ("told", "by heart", "nobody", "somebody", "whither", "who reads whom")

NOT_PROSE = [  # in this order: fenced blocks, tables, headings, headings in a line, pictures
    re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL),
    re.compile(r"^ *\|.*$", re.MULTILINE),
    re.compile(r"^#.*$", re.MULTILINE),
    re.compile(r"(?<=\n)\*\*[^*]+[.:]\*\*|(?<=\n- )\*\*[^*]+[.:]\*\*"),
    re.compile(r"!\[[^\]]*\]\([^)]*\)"),
]
NOT_PROSE_OF_CODE = [  # tables, and legends of shapes
    re.compile(r"^ *====.*^ *====[^\n]*$", re.MULTILINE | re.DOTALL),
    re.compile(r"^(?:Shapes|Legend): .*?(?:\n\n|\Z)", re.MULTILINE | re.DOTALL),
]
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
CODE = re.compile(r"`[^`]*`")
BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*>]|\d+\.) )")  # paragraphs and list items
END = re.compile(r"(?<=[.!?])[)\"*]*\s+")


def sentences(text: str) -> list[str]:
    """Return the sentences of a page; code in a line is one word, of a link its text counts."""
    for pattern in NOT_PROSE:
        text = pattern.sub("\n\n", text)
    text = LINK.sub(r"\1", text)
    parts = (part for block in BLOCK.split(text) for part in END.split(" ".join(block.split())))
    return [part for part in parts if re.search(r"[a-z]{2}", CODE.sub("", part))]


def words(sentence: str) -> int:
    return len(re.findall(r"\S*\w\S*", CODE.sub("code", sentence)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_are_short(page):
    found = sentences(page.read_text("utf8"))
    long = [sentence for sentence in found if words(sentence) > LONGEST]
    assert not long, f"{page.name}: more than {LONGEST} words: {long}"
    mean = sum(map(words, found)) / len(found)
    assert mean <= MEAN, f"{page.name}: {mean:.1f} words a sentence"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_banned_words_are_gone(page):
    text = " ".join(CODE.sub("", page.read_text("utf8")).split())
    found = re.findall(rf"\b(?:{'|'.join(BANNED)})\b", text, re.IGNORECASE)
    assert not found, f"{page.name} says {found}"


def test_long_sentences_and_banned_words_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        f"# A heading\n\nShort. It was by\nheart.\n\n```sh\n{'x ' * 40}\n```\n| {'x ' * 40} |\n"
        f"- one `{'x ' * 40}` word\n- [a link]({'x' * 40}) and {'words ' * 33}end.\n"
    )
    assert [words(sentence) for sentence in sentences(page.read_text())] == [1, 4, 3, 37]
    for test in (test_sentences_are_short, test_banned_words_are_gone):
        with pytest.raises(AssertionError, match="page.md"):
            test(page)


def docstrings(source: str) -> list[str]:
    """Return the docstrings of a module, its classes and functions."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    return [text for node in nodes if (text := ast.get_docstring(node))]


def prose(docstring: str) -> str:
    """Return a docstring without tables and legends, in which code in a line is one word."""
    for pattern in NOT_PROSE_OF_CODE:
        docstring = pattern.sub("\n\n", docstring)
    return re.sub(r"``[^`]*``", "`code`", docstring)


def comments(source: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def bad_prose(source: str) -> list[str]:
    """Return the long sentences of docstrings, and the banned words of docstrings and comments."""
    texts = [prose(text) for text in docstrings(source)]
    found = [each for text in texts for each in sentences(text) if words(each) > LONGEST]
    for text in (*texts, *comments(source)):
        found += re.findall(rf"\b(?:{'|'.join(BANNED)})\b", CODE.sub("", text), re.IGNORECASE)
    return found


def test_docstrings_are_short_and_comments_plain():
    found = {str(file.relative_to(ROOT)): bad_prose(file.read_text("utf8")) for file in CODE_FILES}
    assert not any(found.values()), {name: each for name, each in found.items() if each}
    planted = f'"""Short. Long {"words " * 35}end."""\nx = 1  # as told\ny = "told"\n'
    assert [words(each) for each in bad_prose(planted)] == [37, 1]


def draw(seed: int, count: int) -> list[str]:
    """Return ``count`` sentences of pages, and as many docstrings, drawn without replacement."""
    chosen = random.Random(seed)
    pages = [f"{page.name}: {each}" for page in PAGES for each in sentences(page.read_text("utf8"))]
    code = [f"{file.name}: {each}" for file in CODE_FILES for each in docstrings(file.read_text("utf8"))]
    return chosen.sample(pages, count) + chosen.sample(code, count)


if __name__ == "__main__":
    _, _, seed, _, count = sys.argv
    print("\n\n".join(draw(int(seed), int(count))))
