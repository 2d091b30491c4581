"""What the Markdown pages of the project show as code: blocks, and code within a line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PROGRAMS = ("python", "torchrun", "bash", "sbatch", "srun", "salloc", "source", "pip")
"""What a command may begin with, where nothing but its words tells that it is one."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """A block, or code within a line, and where it stands. `info` is what follows the block's
    fence: its language first."""

    page: str
    line: int
    info: str
    text: str

    @property
    def language(self) -> str:
        return self.info.split(" ")[0]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a shell block: its words, the variables set before them, and the exit status
    that its comment promises, else 0."""

    place: str
    variables: dict[str, str]
    words: tuple[str, ...]
    exit_status: int = 0

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join(self.words)}"


def pages() -> list[str]:
    """All Markdown of the project that people read, as paths from its root."""
    found = [
        *ROOT.glob("*.md"),
        *ROOT.glob("slurm/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("docs/**/*.md"),
    ]
    return sorted(path.relative_to(ROOT).as_posix() for path in found if "_build" not in path.parts)


def blocks(page: str) -> list[Code]:
    """Fenced and indented blocks of a page; an indented one has no language."""
    tokens = [token for token in _tokens(page) if token.type in ("fence", "code_block")]
    return [
        Code(page=page, line=token.map[0] + 1, info=token.info, text=token.content)
        for token in tokens
        if token.map is not None
    ]


def inline_code(page: str) -> list[Code]:
    """Code within the lines and tables of a page."""
    found = []
    for token in _tokens(page):
        for child in token.children or ():
            if child.type == "code_inline" and token.map is not None:
                found.append(Code(page=page, line=token.map[0] + 1, info="", text=child.content))
    return found


def links(page: str) -> list[tuple[int, str]]:
    """Targets of a page's links and pictures, with their lines."""
    found = []
    for token in _tokens(page):
        for child in token.children or ():
            target = child.attrGet("src" if child.type == "image" else "href")
            if child.type in ("link_open", "image") and token.map is not None:
                found.append((token.map[0] + 1, str(target)))
    return found


def headings(page: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    tokens = _tokens(page)
    titles = [
        tokens[number + 1].content
        for number, token in enumerate(tokens)
        if token.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(code: Code) -> Iterator[Command]:
    """The commands of a shell block: one a line, `\\` at the end of a line goes on."""
    for line in code.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        variables = {}
        while words and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", words[0]):
            name, variables[name] = words.pop(0).split("=", 1)
        promised = re.search(r"#.*\bexit status (\d+)", line)
        if words:
            yield Command(
                place=str(code),
                variables=variables,
                words=tuple(words),
                exit_status=int(promised[1]) if promised else 0,
            )


def inline_commands(page: str) -> list[Command]:
    """Code within lines that is a whole command, not just a program's name."""
    found = [
        code
        for code in inline_code(page)
        if code.text.split(" ")[0] in PROGRAMS and " " in code.text
    ]
    return [command for code in found for command in commands(code)]


def _tokens(page: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8"))
