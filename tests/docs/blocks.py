"""Code in the Markdown pages of the project: blocks, and code within a line."""

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
"""First words by which inline code is recognised as a command."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """A block, or code within a line, with its place. `info` is the text after the block's fence,
    which begins with the language."""

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
    """Return the Markdown pages of the project, as paths from its root."""
    found = [
        *ROOT.glob("*.md"),
        *ROOT.glob("slurm/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("docs/**/*.md"),
    ]
    return sorted(path.relative_to(ROOT).as_posix() for path in found if "_build" not in path.parts)


def blocks(page: str) -> list[Code]:
    """Return the fenced and indented blocks of a page; an indented one has no language."""
    tokens = [token for token in _tokens(page) if token.type in ("fence", "code_block")]
    return [
        Code(page=page, line=token.map[0] + 1, info=token.info, text=token.content)
        for token in tokens
        if token.map is not None
    ]


def inline_code(page: str) -> list[Code]:
    """Return the code within the lines and tables of a page."""
    found = []
    for token in _tokens(page):
        for child in token.children or ():
            if child.type == "code_inline" and token.map is not None:
                found.append(Code(page=page, line=token.map[0] + 1, info="", text=child.content))
    return found


def links(page: str) -> list[tuple[int, str]]:
    """Return the targets of a page's links and pictures, with their lines."""
    found = []
    for token in _tokens(page):
        for child in token.children or ():
            target = child.attrGet("src" if child.type == "image" else "href")
            if child.type in ("link_open", "image") and token.map is not None:
                found.append((token.map[0] + 1, str(target)))
    return found


def headings(page: str) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    tokens = _tokens(page)
    titles = [
        tokens[number + 1].content
        for number, token in enumerate(tokens)
        if token.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(code: Code) -> Iterator[Command]:
    """Yield the commands of a shell block: one per line, continued by `\\` at its end."""
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
    """Return inline code that is a whole command, not just a program's name."""
    found = [
        code
        for code in inline_code(page)
        if code.text.split(" ")[0] in PROGRAMS and " " in code.text
    ]
    return [command for code in found for command in commands(code)]


def _tokens(page: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8"))
