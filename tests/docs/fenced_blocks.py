"""What stands between the fences of a page."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def fenced_blocks(page: str, language: str) -> list[str]:
    """The blocks of one language of a page of the repository, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
