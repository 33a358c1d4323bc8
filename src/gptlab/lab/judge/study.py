"""Which runs are judged: two arms, seed by seed, or one arm alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.console import say
from gptlab.errors import GptlabError, option
from gptlab.lab.judge.asking import Asked
from gptlab.lab.judge.questions import Criterion, Question
from gptlab.record.runfolder import (
    WEIGHTS,
    digest_of_weights,
    named_hash,
    read_config,
    require_run,
    say_changed_weights,
)

Texts = Mapping[tuple[Path, str], str]
"""What a run made of a prompt."""


@dataclass(frozen=True)
class Arm:
    """Runs of one config. `label`: what it is called; `runs`: a folder a seed; `seeds`: theirs, in the same order."""

    label: str
    runs: tuple[Path, ...]
    seeds: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """One arm to be graded, or two to be compared, whose runs pair in their order."""

    arms: tuple[Arm, ...]

    @property
    def is_comparison(self) -> bool:
        """Whether B is held against A."""
        return len(self.arms) == 2

    @property
    def runs(self) -> tuple[Path, ...]:
        """All folders."""
        return tuple(run for arm in self.arms for run in arm.runs)

    def weights(self) -> list[list[str]]:
        """The digests of the runs' weights, by arm."""
        return [[digest_of_weights(run) for run in arm.runs] for arm in self.arms]


def read_study(folders: Sequence[Path], *, grade: bool) -> Study:
    """The runs in `folders` as arms: one folder is graded; two are compared, the second with the first; of more, those
    of the first one's config are A and those of one other config are B, paired by seed.

    `grade`: all are graded, and are of one config. Raises GptlabError where a folder is no finished run or is named
    twice, for configs that make no two arms, and where no seed has a run in both.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise GptlabError("a run is named twice; it is no better than itself")
    for folder in folders:
        require_run(folder)
        if not (folder / WEIGHTS).is_file():
            raise GptlabError(f"{folder} has no {WEIGHTS}; train it to its end with `gptlab train {folder} --resume`")
        say_changed_weights(folder)
    seeds = {folder: str(read_config(folder).seed) for folder in folders}
    if len(folders) == 2 and not grade:
        labels = [_label(folder) for folder in folders]
        if labels[0] == labels[1]:
            labels = [folder.resolve().name for folder in folders]
        arms = [Arm(label, (folder,), (seeds[folder],)) for label, folder in zip(labels, folders, strict=True)]
        return Study(tuple(arms))
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        groups.setdefault(named_hash(folder) or folder.resolve().name, []).append(folder)
    wanted = 1 if grade or len(folders) == 1 else 2
    if len(groups) != wanted:
        what = f"runs of one config are graded together, or two configs compared (without {option('grade')})"
        if wanted == 2:
            what = f"two configs are compared, seed by seed; one is graded with {option('grade')}"
        raise GptlabError(f"these runs are of {len(groups)} configs ({', '.join(groups)}); {what}")
    arms = [_arm(runs, seeds) for runs in groups.values()]
    return Study(tuple(arms)) if wanted == 1 else Study(_paired(*arms))


def _label(folder: Path) -> str:
    return re.sub(r"-seed[0-9-]+$", "", folder.resolve().name)


def _arm(runs: Sequence[Path], seeds: Mapping[Path, str]) -> Arm:
    by_seed: dict[str, Path] = {}
    for run in runs:
        if (other := by_seed.setdefault(seeds[run], run)) != run:
            raise GptlabError(f"{run} and {other} are both of seed {seeds[run]}; name one of them")
    return Arm(_label(runs[0]), tuple(by_seed.values()), tuple(by_seed))


def _paired(a: Arm, b: Arm) -> tuple[Arm, Arm]:
    shared = [seed for seed in a.seeds if seed in b.seeds]
    if not shared:
        raise GptlabError(f"no seed has a run of both {a.label} and {b.label}; runs are compared seed by seed")
    for arm in (a, b):
        if alone := [seed for seed in arm.seeds if seed not in shared]:
            say(f"left out of {arm.label}: seed {', '.join(alone)}, which has no run to be paired with")

    def keep(arm: Arm) -> Arm:
        return Arm(arm.label, tuple(arm.runs[arm.seeds.index(seed)] for seed in shared), tuple(shared))

    return keep(a), keep(b)


def all_questions(
    study: Study,
    prompts: Sequence[str],
    texts: Texts,
    criteria: tuple[Criterion, ...],
    *,
    judge: Mapping[str, Any],
    repeats: int,
) -> list[Asked]:
    """Every question in the order in which it is put: repeats apart, then prompt by prompt with both orders together,
    so that what a budget ends early has whole pairs of the first prompts.

    `judge`: what an answer depends on beside the question, its model above all.
    """
    found = []
    for repeat in range(repeats):
        for p, prompt in enumerate(prompts):
            for s, runs in enumerate(zip(*(arm.runs for arm in study.arms), strict=True)):
                for order in range(len(runs)):
                    shown = runs if order == 0 else runs[::-1]
                    question = Question(prompt, tuple(texts[run, prompt] for run in shown), criteria)
                    names = tuple(run.resolve().name for run in shown)
                    found.append(Asked(question, p, s, repeat, order, names, question.key(judge, repeat)))
    return found


def default_name(study: Study, settings: Mapping[str, Any]) -> str:
    """What the folder of a judging is called: its arms, and 8 digits of SHA-256 of their weights and of `settings`."""
    text = json.dumps([study.weights(), dict(settings)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    names = "-against-".join(arm.label[:60] for arm in reversed(study.arms))
    return f"{names if study.is_comparison else f'{names}-graded'}-{digest}"
