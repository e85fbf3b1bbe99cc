"""The pages point to files that exist and show commands that parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from radgaze.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def shown_commands() -> list[str]:
    lines = [
        line.strip().split("  #")[0]
        for page in PAGES
        for block in FENCE.findall(page.read_text(encoding="utf-8").replace("\\\n", " "))
        for line in block.splitlines()
    ]
    return sorted({line for line in lines if line.startswith("radgaze ")})


@pytest.mark.parametrize("line", shown_commands())
def test_commands_exist_with_their_options(line: str) -> None:
    command = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"there is no command {words[0]!r} in: {line}"
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known | {"--help"}, f"{word} is no option of: {line}"


def test_there_are_commands_to_check() -> None:
    assert len(shown_commands()) > 10


def spoken_by_the_code() -> str:
    """All source as one text, strings joined over lines, every `{...}` of an f-string as an ellipsis."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
    joined = re.sub(r"\"\s*\n\s*f?\"", "", source)
    return re.sub(r"\{[^{}\n]*\}", "…", joined) + (ROOT / "Makefile").read_text(encoding="utf-8")


def test_troubleshooting_quotes_errors_that_exist() -> None:
    said = spoken_by_the_code()
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [
        text for heading in re.findall(r"^### (.*)$", page, re.MULTILINE) for text in re.findall(r"`(.+?)`", heading)
    ]
    assert len(quoted) > 30
    for text in quoted:
        for fragment in (part.strip() for part in re.split("…|127|255", text)):
            assert fragment in said, f"no error says {fragment!r} (of {text!r})"
