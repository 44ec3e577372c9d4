"""Hooks of mkdocs: pages of the site that do not lie in docs/, and one of the API for each folder of the package."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ABOVE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "NOTICE": "notice.md",
}
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
DECISIONS = sorted(file.name for file in (ROOT / "docs" / "decisions").glob("*.md"))


def folders() -> dict[str, list[str]]:
    """Return the modules of each folder of the package, by the folder's dotted name."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "reverie").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if not parts[-1].startswith("_"):
            found.setdefault(".".join(parts[:-1]), []).append(".".join(parts))
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add what is made here to the navigation."""
    assert config.nav is not None
    config.nav += [
        {"API": [f"api/{name}.md" for name in folders()]},
        {"Decisions": [f"decisions/{name}" for name in DECISIONS]},
        {"About": ["changelog.md", "log.md", "notice.md"]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages above docs/, and those of the API."""
    for name, page in ABOVE.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = LINK.sub(lambda link: f"]({ABOVE.get(link[1], link[1].removeprefix('docs/'))}", text)
        text = text.replace("](decisions/)", f"](decisions/{DECISIONS[0]})")  # a site has no folders to look into
        files.append(File.generated(config, page, content=text))
    for name, modules in folders().items():
        text = "\n\n".join([f"# {name}", *(f"::: {module}" for module in modules)])
        files.append(File.generated(config, f"api/{name}.md", content=text + "\n"))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links from docs/ to the pages above it lead to their place on the site."""
    return LINK.sub(lambda link: f"]({ABOVE.get(link[1].removeprefix('../'), link[1])}", markdown)
