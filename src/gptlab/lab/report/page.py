"""report.html: the report as one page that holds everything it needs, figures and style, for light and dark screens."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape

from gptlab.lab.report.blocks import Block, Bullets, Code, Heading, Paragraph, Picture, Table, Verdicts

_STYLE = """
:root { color-scheme: light dark; --text: #222; --muted: #666; --back: #fff; --line: #ddd; --soft: #f5f6f4; }
@media (prefers-color-scheme: dark) {
  :root { --text: #ddd; --muted: #999; --back: #16191c; --line: #3a3f44; --soft: #1f2326; }
}
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
p, li { max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--muted); font-weight: 600; }
tbody tr:hover { background: var(--soft); }
.l { text-align: left; }
pre { background: var(--soft); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; border-radius: 4px; }
figure { margin: 1.2rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: var(--muted); font-size: .88rem; max-width: 46rem; }
.verdicts { list-style: none; padding: 0; }
.verdicts li { padding: .6rem .9rem; margin: .5rem 0; border-left: 5px solid #808080; background: var(--soft);
  font-weight: 600; max-width: none; }
.verdicts .better { border-color: #009e73; }
.verdicts .worse { border-color: #d55e00; }
.verdicts .no-difference-that-matters { border-color: #0072b2; }
"""


LEFT = ' class="l"'


def render(blocks: Sequence[Block], title: str, svg: Callable[[str, bool], bytes]) -> str:
    """The blocks as a page of its own. `svg`: a figure by its name, for a light or a dark screen."""
    body = "\n".join(_render(block, svg) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _render(block: Block, svg: Callable[[str, bool], bytes]) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Verdicts(items):
            lines = (f'<li class="{verdict.replace(" ", "-")}">{escape(line)}</li>' for verdict, line in items)
            return f'<ul class="verdicts">{"".join(lines)}</ul>'
        case Code(text, _):
            return f"<pre>{escape(text.rstrip())}</pre>"
        case Picture(name, caption):
            dark, light = (_data(svg(name, dark)) for dark in (True, False))
            return (
                f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
                f'<img src="{light}" alt="{escape(name)}"></picture>'
                f"<figcaption>{escape(caption)}</figcaption></figure>"
            )
        case Table(header, rows, left):
            head = _row("th", header, left)
            body = "\n".join(_row("td", row, left) for row in rows)
            return f'<div class="scroll"><table><thead>{head}</thead>\n<tbody>{body}</tbody></table></div>'


def _row(tag: str, cells: Sequence[str], left: int) -> str:
    parts = (f"<{tag}{LEFT if number < left else ''}>{escape(cell)}</{tag}>" for number, cell in enumerate(cells))
    return f"<tr>{''.join(parts)}</tr>"


def _data(image: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(image).decode()
