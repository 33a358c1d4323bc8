"""report.md: the report for people who read it in a terminal or on a forge."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gptlab.lab.report.blocks import Block, Bullets, Code, Heading, Paragraph, Picture, Table, Verdicts


def render(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown; figures are links into figures/."""
    return "\n\n".join(_render(block) for block in blocks) + "\n"


def _render(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {escape(text)}"
        case Paragraph(text):
            return escape(text)
        case Bullets(items):
            return "\n".join(f"- {escape(item)}" for item in items)
        case Verdicts(items):
            return "\n".join(f"- **{escape(line)}**" for _, line in items)
        case Code(text, language):
            fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
            return f"{fence}{language}\n{text.rstrip()}\n{fence}"
        case Picture(name, caption):
            return f"![{name}](figures/{name}.png)\n\n{escape(caption)}"
        case Table(header, rows, left):
            rule = ["---" if number < left else "---:" for number in range(len(header))]
            lines = [list(header), rule, *(map(escape, row) for row in rows)]
            return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escape(text: str) -> str:
    """Text in which Markdown reads nothing, and which stays on its line."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))
