"""LaTeX text: escaping, tables, and numbers that are macros with a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "²": r"\textsuperscript{2}",
    "³": r"\textsuperscript{3}",
    "±": r"\ensuremath{\pm}",
    "×": r"\ensuremath{\times}",
    "−": r"\ensuremath{-}",
    "α": r"\ensuremath{\alpha}",
    "β": r"\ensuremath{\beta}",
    "µ": r"\ensuremath{\mu}",
    "≤": r"\ensuremath{\leq}",
    "≥": r"\ensuremath{\geq}",
    "→": r"\ensuremath{\rightarrow}",
    "–": "--",
    "…": r"\ldots{}",
    "’": "'",
}


def escape(text: str) -> str:
    """Text that LaTeX sets as it is. A character that its plain fonts have not becomes its code point, U+1F600."""
    return "".join(_SPECIAL.get(c) or (c if c.isascii() or c in _LATIN else f"U+{ord(c):04X}") for c in text)


_LATIN = frozenset("äöüÄÖÜßéèêëáàâãåæçíìîïñóòôõøœúùûýÿÉÈÀÁÂÃÅÆÇÍÎÑÓÔÕØŒÚÛÝ§©°·")


def code(text: str) -> str:
    """A path, key or value in typewriter, which may be broken after punctuation."""
    broken = escape(text)
    for mark in ("/", ".", r"\_", "-", ",", ":"):
        broken = broken.replace(mark, rf"{mark}\allowbreak{{}}")
    return rf"\texttt{{{broken}}}"


def tabular(header: Sequence[str], rows: Sequence[Sequence[str]], columns: str) -> str:
    """A table whose cells are LaTeX already."""
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\hline",
        " & ".join(rf"\textbf{{{cell}}}" for cell in header) + r" \\",
        r"\hline",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\hline",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def longtable(header: Sequence[str], rows: Sequence[Sequence[str]], columns: str) -> str:
    """A table that may go over pages; cells are LaTeX already."""
    head = " & ".join(rf"\textbf{{{cell}}}" for cell in header) + r" \\"
    lines = [rf"\begin{{longtable}}{{{columns}}}", r"\hline", head, r"\hline", r"\endhead"]
    lines += [*(" & ".join(row) + r" \\" for row in rows), r"\hline", r"\end{longtable}"]
    return "\n".join(lines) + "\n"


class Source(NamedTuple):
    """Where a number is read: a run, a file in its folder, a key in that file."""

    run: str
    file: str
    key: str


@dataclass
class Numbers:
    """Every number of a paper: a macro, what it says, and the runs that it comes from."""

    values: dict[str, tuple[str, str, list[Source]]] = field(default_factory=dict)

    def put(self, name: str, says: str, value: str, sources: Sequence[Source]) -> str:
        """Keep a number; returns the LaTeX that prints it. `says`: for people, "swiglu mean loss"."""
        assert sources, f"{says} has no source"
        self.values[name] = (says, value, list(dict.fromkeys(sources)))
        return rf"\result{{{name}}}"

    def definitions(self) -> str:
        """numbers.tex: the macro \\result{NAME}, and the value of every name."""
        lines = [
            "% Written by `gptlab paper`, anew each time, from the logs of the runs that sources.json names.",
            r"\makeatletter",
            r"\DeclareRobustCommand{\result}[1]{\ifcsname gptlab@#1\endcsname\csname gptlab@#1\endcsname"
            r"\else\errmessage{no number is called #1}\fi}",
        ]
        for name, (_, value, _) in self.values.items():
            lines.append(rf"\expandafter\def\csname gptlab@{name}\endcsname{{{escape(value)}}}")
        return "\n".join([*lines, r"\makeatother"]) + "\n"
