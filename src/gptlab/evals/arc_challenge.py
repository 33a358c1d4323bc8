"""ARC, challenge: the science questions that search engines and word overlap get wrong (Clark et al. 2018,
arXiv:1803.05457)."""

from __future__ import annotations

from gptlab.evals.arc_easy import question
from gptlab.evals.benchmark import Benchmark, QuestionFile
from gptlab.evals.questions import QuestionTask, columns, hub_file

TASK = QuestionTask(
    "arc_challenge",
    question,
    (QuestionFile("arc_challenge.jsonl", hub_file("allenai/ai2_arc", "ARC-Challenge", "test")),),
    examples=(QuestionFile("arc_challenge_train.jsonl", hub_file("allenai/ai2_arc", "ARC-Challenge", "train")),),
)

BENCHMARK = Benchmark("arc_challenge", TASK.evaluate, columns("arc_challenge"), files=TASK.files)
