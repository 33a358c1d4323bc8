"""Suites: lists of benchmarks by a name, for `gptlab eval --suite`."""

from __future__ import annotations

from collections.abc import Sequence

from gptlab.errors import GptlabError, did_you_mean, option

SUITES: dict[str, tuple[str, tuple[str, ...]]] = {
    "small": (
        "what tells models of 1M to 1B parameters apart, without examples",
        (
            "blimp",
            "hellaswag",
            "lambada_openai",
            "piqa",
            "arc_easy",
            "sciq",
            "copa",
            "winogrande",
            "openbook_qa",
        ),
    ),
    "core": ("the 22 tasks of DataComp-LM, one number", ("core",)),
    "perplexity": ("published texts", ("wikitext", "ptb", "lambada_openai")),
}
"""What each is for, and its tasks. `small` goes from what the smallest models learn first to what only the largest of
them do; tasks at which all of these guess (mmlu, race, arc_challenge, commonsense_qa, triviaqa) are not in it."""


def tasks_of(suites: Sequence[str]) -> list[str]:
    """The tasks of several suites, each once. Raises GptlabError for a name that is none."""
    found: list[str] = []
    for name in suites:
        if name not in SUITES:
            raise GptlabError(f"{option('suite')}: no suite {name!r}; {did_you_mean(name, SUITES)}")
        found += SUITES[name][1]
    return list(dict.fromkeys(found))
