"""The Winograd schema challenge: whom a pronoun means, in 273 sentences of which most come as twins (Levesque et al.
2012; scored as in Trinh and Le 2018, arXiv:1806.02847)."""

from __future__ import annotations

from gptlab.evals.benchmark import Benchmark, QuestionFile
from gptlab.evals.multiple_choice import Question, evaluate_by_sum
from gptlab.evals.questions import QuestionTask, Row, columns, foundry_schema, hub_file, text, texts

POSSESSIVE = {"my", "his", "her", "our", "their"}
CAPITALIZED = {"A", "An", "The", "She", "He", "It", "They", "My", "His", "Her", "Their"}


def question(row: Row, number: int) -> Question:
    """A question of the authors' list (`wsc273`), its names put into the sentence as lm-evaluation-harness does it; or
    of LLM Foundry's file. Twins, which share their beginning, are one group."""
    if "context_options" in row:
        contexts, rest, gold = foundry_schema(row)
    else:
        sentence, place = text(row, "text").replace("  ", " "), int(row["pronoun_loc"])
        pronoun = text(row, "pronoun")
        names = [_fitting(name, pronoun, sentence[place - 2] == ".") for name in texts(row, "options")]
        contexts = tuple(sentence[:place] + name for name in names)
        rest, gold = sentence[place + len(pronoun) :], int(row["label"])
    return Question(number, contexts, (rest,) * len(contexts), gold, group="|".join(contexts))


def _fitting(name: str, pronoun: str, begins: bool) -> str:
    """A name as it stands where the pronoun stood: 's after a possessive, its article small within a sentence."""
    if pronoun.lower() in POSSESSIVE:
        name += "'s"
    first = name.split()[0]
    return name if begins or first not in CAPITALIZED else name.replace(first, first.lower())


TASK = QuestionTask(
    "winograd_wsc",
    question,
    (QuestionFile("winograd_wsc.jsonl", hub_file("lighteval/winograd_wsc", "wsc273", "test")),),
    score=evaluate_by_sum,
)

BENCHMARK = Benchmark("winograd_wsc", TASK.evaluate, columns("winograd_wsc", "acc"), files=TASK.files)
