"""Results as people see them: at a prompt, through rich, below a notebook's cell."""

from __future__ import annotations

import importlib
import io
import pkgutil
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from rich.console import Console

import gptlab
from gptlab.shown import Marked, Sheet, Shown, cells


class Result(Shown):
    """Two rows with what HTML and rich could take for theirs."""

    def sheet(self) -> Sheet:
        rows = [["a<b>", "1.5"], ["[red]c", "10.25"]]
        return Sheet("losses & more", rows, ("what", "loss"), ["a note [/x]"])


class Tags(HTMLParser):
    """The tags that are open at the end, all that there were, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_at_a_prompt() -> None:
    assert repr(Result()) == "losses & more\nwhat     loss\na<b>      1.5\n[red]c  10.25\na note [/x]"


def test_through_rich() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(Result())
    assert isinstance(console.file, io.StringIO)
    shown = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert shown == ["losses & more", "what     loss", "a<b>      1.5", "[red]c  10.25", "a note [/x]"]


def test_in_a_notebook() -> None:
    source = Result()._repr_html_()
    found = Tags(source)
    assert found.open == []
    assert found.seen.count("tr") == 3
    assert "b" in found.seen  # the title's, and not that of the cell
    assert found.seen.count("b") == 1
    assert {"losses & more", "a<b>", "[red]c", "a note [/x]"} <= set(found.text)
    assert "color:" not in source  # that of the page, light or dark
    assert "background" not in source


def test_a_long_table_is_shown_by_its_ends() -> None:
    class Long(Result):
        def sheet(self) -> Sheet:
            return Sheet("", [[f"row {number}", "0"] for number in range(1000)], ("", "n"))

    lines = repr(Long()).splitlines()
    assert len(lines) == 61
    assert lines[1].startswith("row 0 ")
    assert any(line.startswith("… 941 more") for line in lines)
    assert lines[-1].startswith("row 999 ")


def test_marks_can_be_read_on_light_and_dark_and_hold_the_text() -> None:
    marked = Marked([("def", 0.5, "17"), ("\n<x>", 2.0, 'a "word"')])
    found = Tags(marked._repr_html_())
    assert "".join(found.text) == "def⏎\n<x>"
    assert found.open == []
    assert marked._repr_html_().count("rgba") == 2
    assert "1.00" in marked._repr_html_()  # no mark is darker than full
    assert repr(marked) == "def│\n<x>"


def test_cells() -> None:
    assert cells([1.23456, None, 2], ".2f") == ["1.23", "–", "2.00"]


def classes() -> Iterator[type[Shown]]:
    for module in pkgutil.walk_packages(gptlab.__path__, "gptlab."):
        if "templates" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    todo = Shown.__subclasses__()
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if kind.__module__.startswith("gptlab."):
            yield kind


def test_no_dataclass_hides_the_table_behind_its_own_repr() -> None:
    found = list(classes())
    assert {"Run", "LossResult", "Evaluation", "Soup", "StageResult", "Evidence", "Comparison", "Ladder"} <= {
        kind.__name__ for kind in found
    }
    for kind in found:
        assert kind.__repr__ is Shown.__repr__, f"{kind.__name__}: declare it with repr=False"


@pytest.mark.parametrize("name", ["compare", "compare_words", "evaluate", "read_verdicts"])
def test_they_are_functions_of_the_package(name: str) -> None:
    assert callable(getattr(gptlab, name))
