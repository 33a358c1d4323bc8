"""What a judge is asked: prompts, criteria, questions, what is read of an answer, and the lines in which it is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gptlab.errors import GptlabError
from gptlab.lab.judge.book import Lines, Verdict
from gptlab.lab.judge.prompts import prompt_lists, read_prompts
from gptlab.lab.judge.questions import STORY, Criterion, Question, read_criteria

PAIR_OF_TEXTS = Question("Once", (" a", " b"), (Criterion("plot", "?"),))
ONE_TEXT = Question("Once", (" a",), (Criterion("plot"),))


@pytest.mark.parametrize(
    ("question", "said", "read"),
    [
        (PAIR_OF_TEXTS, '{"plot": "A", "overall": "B"}', {"plot": 1.0, "overall": 0.0}),
        (PAIR_OF_TEXTS, 'Here:\n```json\n{"Plot": " tie ", "OVERALL": "a"}\n```', {"plot": 0.5, "overall": 1.0}),
        (PAIR_OF_TEXTS, '{"plot": "A and B", "overall": "B"}', None),
        (PAIR_OF_TEXTS, '{"plot": 1, "overall": "B"}', None),
        (PAIR_OF_TEXTS, '{"overall": "B"}', None),
        (PAIR_OF_TEXTS, '{"plot": "A", "overall": "B"', None),
        (PAIR_OF_TEXTS, '{"plot": "A"} {"overall": "B"}', None),
        (PAIR_OF_TEXTS, "A", None),
        (ONE_TEXT, '{"plot": 7}', {"plot": 7.0}),
        (ONE_TEXT, '{"plot": "10"}', {"plot": 10.0}),
        (ONE_TEXT, '{"plot": 6.5}', {"plot": 6.5}),
        (ONE_TEXT, '{"plot": 0}', None),
        (ONE_TEXT, '{"plot": 11}', None),
        (ONE_TEXT, '{"plot": true}', None),
        (ONE_TEXT, '{"plot": NaN}', None),
        (ONE_TEXT, '{"plot": "7/10"}', None),
    ],
)
def test_what_is_read_of_an_answer(question: Question, said: str, read: dict[str, float] | None) -> None:
    assert question.read(said) == read


def test_a_key_depends_on_everything_that_an_answer_does() -> None:
    one, judge = PAIR_OF_TEXTS, {"model": "m"}
    others = [
        dataclasses.replace(one, prompt="Twice").key(judge, 0),
        dataclasses.replace(one, shown=(" b", " a")).key(judge, 0),
        dataclasses.replace(one, criteria=(Criterion("plot", "!"),)).key(judge, 0),
        one.key({"model": "n"}, 0),
        one.key({"model": "m", "temperature": 0.0}, 0),
        one.key(judge, 1),
    ]
    assert len({one.key(judge, 0), *others}) == 7
    assert one.key(judge, 0) == dataclasses.replace(one).key(dict(judge), 0)


def test_criteria_of_ones_own(tmp_path: Path) -> None:
    wanted = (Criterion("humour", "is it funny; really?"), Criterion("rhyme"))
    path = tmp_path / "criteria.txt"
    path.write_text("- Humour: is it funny; really?\n\n* rhyme\n")
    assert read_criteria(str(path)) == wanted
    assert read_criteria("humour: is it funny; rhyme") == (Criterion("humour", "is it funny"), Criterion("rhyme"))
    assert read_criteria(None) == STORY
    for wrong in ("overall", "a; A", ";", "x" * 50, "{}: y"):
        with pytest.raises(GptlabError, match="NAME: what it means"):
            read_criteria(wrong)


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    text, rows = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("\ufeffOne day\n\n  Two nights  \r\n", encoding="utf-8")
    rows.write_text('{"prompt": "One\\u2028day ", "other": 1}\n{"prompt": "Two"}\n')
    assert read_prompts(str(text)).texts == ("One day", "Two nights")
    assert read_prompts(str(rows)).texts == ("One\u2028day ", "Two")
    assert read_prompts(str(rows), 1).texts == ("One\u2028day ",)
    for wrong, message in (
        ('{"prompt": "a"}\n{"prompt": "a"}', ":2: the same prompt as in line 1"),
        ('{"text": "a"}', ":1: no text under `prompt`"),
        ('{"prompt": " "}', ":1: no text under `prompt`"),
        ("[]", ":1: not an object"),
        ('{"prompt": "a"', ":1: not an object"),
        ("\n", "no prompts"),
        ("\xe9", "not UTF-8"),
    ):
        rows.write_bytes(wrong.encode("latin-1"))
        with pytest.raises(GptlabError, match=message):
            read_prompts(str(rows))


def test_the_lists_that_ship() -> None:
    assert prompt_lists() == ("continuations", "stories")
    for name in prompt_lists():
        prompts = read_prompts(name)
        assert len(prompts.texts) == 48
        assert all(20 < len(text) < 200 for text in prompts.texts)


@pytest.mark.parametrize(
    "content",
    [b'{"key": "a"}', b"[]", b"null", b"[" * 10_000, b"\xff", b"\x00", b"", b'{"key": NaN}'],
    ids=lambda content: repr(content[:12]),
)
def test_lines_that_are_of_another_kind_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_bytes(content + b"\n")
    with pytest.raises(GptlabError, match=r"verdicts\.jsonl:1: damaged"):
        Lines(path, Verdict)
