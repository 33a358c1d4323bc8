"""`gptlab judge` against a real server that judges by rules: results, resumption, budgets, and every odd answer."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, gptlab, make_data
from judge_server import JudgeServer, Odd, serving

from gptlab.errors import BusyError, GptlabError
from gptlab.evals.continuations import complete
from gptlab.inference.generate import Sampling
from gptlab.lab.judge import endpoint
from gptlab.lab.judge.asking import BudgetSpentError
from gptlab.lab.judge.book import open_book
from gptlab.lab.judge.judging import Judging, read_judging
from gptlab.lab.judge.prompts import read_prompts
from gptlab.lab.judge.questions import STORY
from gptlab.lab.judge.session import Request, judge_runs
from gptlab.lab.judge.study import read_study

KEY = "sk-of-these-tests-0123456789"
SHORT = {"max_new_tokens": 16, "temperature": 0.8, "top_p": None, "seed": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/: two configs, two seeds each, and one seed more of the first."""
    from gptlab.config import load_config
    from gptlab.training.loop import train

    place = tmp_path_factory.mktemp("judged")
    make_data(place)
    (place / "base.yaml").write_text(TINY.replace("5120", "1024") + "name: base\ndata: {path: data}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, rate, seeds in (("base", "1e-3", (1, 2, 3)), ("idea", "1e-2", (1, 2))):
            for seed in seeds:
                train(load_config("base.yaml", [f"name={name}", f"optimizer.lr={rate}", f"seed={seed}"]))
    for folder in place.glob("runs/*"):
        shutil.rmtree(folder / "code")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own with those runs."""
    (tmp_path / "runs").symlink_to(trained / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    with serving(JudgeServer(quality=lambda text: text.count("e") / 2, first=0.5, longer=0.5)) as server:
        yield server


def runs(*patterns: str) -> list[Path]:
    return [run for pattern in patterns for run in sorted(Path("runs").glob(pattern))]


PAIR = ("base-*seed1", "idea-*seed1")


def write(run: Path, prompts: Sequence[str]) -> Iterator[str]:
    return complete(run, prompts, Sampling(**SHORT), device="cpu")


def unwritten(run: Path, prompts: Sequence[str]) -> Iterator[str]:
    """Texts that no model wrote, where only the asking is tried."""
    return (f"{run.name} went on from {prompt[:20]}" for prompt in prompts)


def request(judge: JudgeServer, *patterns: str, **changes: Any) -> Request:
    return Request(
        runs(*(patterns or PAIR)), judge.url, "tiny", **{"limit": 4, "sampling": SHORT, "name": "one", **changes}
    )


def judged(asked: Request, writer: Callable[..., Iterator[str]] = unwritten) -> Judging:
    folder, result = judge_runs(asked, writer)
    assert result is not None
    assert result == read_judging(folder)
    return result


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------- from the command line to the result


def test_two_runs_from_the_command_line(place: Path, judge: JudgeServer) -> None:
    arguments = ["judge", *map(str, runs(*PAIR)), "--judge", judge.url, "--model", "tiny", "--limit", "6"]
    arguments += ["--max-new-tokens", "16", "--price-in", "1", "--price-out", "10", "--device", "cpu"]
    plan = gptlab(*arguments, "--dry-run", cwd=place)
    (folder,) = place.glob("judgings/*")
    assert len({(row["prompt"], row["text"]) for row in lines(folder / "answers.jsonl")}) == 12
    assert judge.requests == 0
    assert "12 questions to ask: about" in plan.stderr
    done = gptlab(*arguments, cwd=place)
    assert judge.requests == len(set(judge.questions)) == 12
    assert "idea-" in done.stdout
    assert "B wins" in done.stdout
    assert "12 answers: 2,400 tokens in, 480 out, $0.0072" in done.stdout
    result = read_judging(folder)
    assert result.preference is not None
    assert result.preference.pairs == 6
    assert set(result.criteria_won) == {criterion.name for criterion in STORY}
    assert done.stdout.strip().splitlines()[-1] == result.markdown()
    again = gptlab(*arguments, cwd=place)
    assert judge.requests == 12
    assert again.stdout == done.stdout
    assert "all 12 questions have their answers already" in again.stderr


def test_the_numbers_are_those_of_the_verdicts(place: Path, judge: JudgeServer) -> None:
    """By hand, from what is kept: B's share of each verdict, whichever place it had."""
    result = judged(request(judge, limit=8), write)
    won = {"base": 0.0, "idea": 0.0}
    first = 0.0
    rows = lines(Path("judgings/one/verdicts.jsonl"))
    for row in rows:
        score = row["scores"]["overall"]
        shown = [name.split("-")[0] for name in row["shown"]]
        won[shown[0]] += score
        won[shown[1]] += 1 - score
        first += score
    assert len(rows) == 16
    assert result.preference is not None
    assert result.preference.win_rate.value == pytest.approx(won["idea"] / 16)
    assert result.preference.first_wins.value == pytest.approx(first / 16)
    assert judge.quality("e" * 20) > 0


def test_the_better_text_wins_whichever_place_it_has(place: Path) -> None:
    with serving(JudgeServer(quality=lambda text: 50.0 * ("idea-" in text), ties=0.0)) as server:
        forward = judged(request(server, name="forward"))
        backward = judged(request(server, *PAIR[::-1], name="backward"))
    for result, wins in ((forward, 1.0), (backward, 0.0)):
        assert result.preference is not None
        assert result.preference.win_rate.value == wins
        assert result.preference.first_wins.value == 0.5
        assert result.preference.orders_agree.value == 1


def test_one_run_is_graded(place: Path, judge: JudgeServer) -> None:
    result = judged(request(judge, "base-*seed1", limit=6))
    rows = lines(Path("judgings/one/verdicts.jsonl"))
    assert result.preference is None
    assert list(result.grades) == [*(criterion.name for criterion in STORY), "mean"]
    grammar = [row["scores"]["grammar"] for row in rows]
    assert result.grades["grammar"].value == pytest.approx(sum(grammar) / 6)
    assert "of 10" in result.markdown()
    assert result.arms[0] in repr(result)


def test_seeds_pair_and_what_does_not_is_said(
    place: Path, judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    result = judged(request(judge, "base-*", "idea-*", repeats=2))
    assert "left out of base-" in capsys.readouterr().err
    assert result.seeds == 2
    assert result.questions == 4 * 2 * 2 * 2
    for names in ([row["run"] for row in arm] for arm in result.runs):
        assert [name[-5:] for name in names] == ["seed1", "seed2"]
    for row in lines(Path("judgings/one/verdicts.jsonl")):
        assert row["shown"][0][-5:] == row["shown"][1][-5:]
    assert result.preference is not None
    assert result.preference.repeats_agree is not None
    graded = judged(request(judge, "base-*", grade=True, name="two"))
    assert (graded.seeds, graded.questions) == (3, 12)


def test_a_text_depends_on_its_prompt_alone(place: Path) -> None:
    """And not on which others are written before it, so that a list can be cut and continued."""
    run, prompts = runs("base-*seed1")[0], list(read_prompts("stories").texts[:3])
    sampling = Sampling(**SHORT)
    whole = list(complete(run, prompts, sampling, device="cpu"))
    assert list(complete(run, prompts[2:], sampling, device="cpu")) == whole[2:]
    assert len(set(whole)) == 3
    assert list(complete(run, prompts[:1], dataclasses.replace(sampling, seed=2), device="cpu")) != whole[:1]


def test_one_text_twice_is_a_tie_that_nobody_is_asked_about(place: Path, judge: JudgeServer) -> None:
    result = judged(request(judge), lambda run, prompts: (p if p.startswith("Once") else f"{run}{p}" for p in prompts))
    assert result.identical == 1
    assert judge.requests == 6
    assert result.preference is not None
    assert (result.preference.pairs, result.preference.ties >= 2) == (4, True)
    assert "1 pairs of texts are one text twice" in repr(result)


# ---------------------------------------------------------------- nothing is paid for twice


def test_what_changes_a_question_is_asked_anew_and_nothing_else(place: Path, judge: JudgeServer) -> None:
    judged(request(judge))
    asked = judge.requests
    for changes, new in (
        ({}, 0),
        ({"limit": 5}, 2),
        ({"repeats": 2}, 8),
        ({"criteria": "humour: is it funny?"}, 8),
        ({"judge_temperature": 0.5}, 8),
        ({"limit": 2}, 0),
    ):
        judged(request(judge, **changes))
        assert judge.requests - asked == new, changes
        asked = judge.requests


def start(place: Path, judge: JudgeServer) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gptlab", "judge", *map(str, runs(*PAIR)), "--judge", judge.url, "--model", "tiny"]
    command += ["--limit", "12", "--max-new-tokens", "150", "--name", "killed", "--device", "cpu"]
    return subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not what():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_asked_twice(place: Path, judge: JudgeServer) -> None:
    """Killed while texts are written, while the first answer is awaited, between the two attempts at an answer that
    cannot be read, and later; the result is that of a judging that was left alone."""
    process: subprocess.Popen[bytes] | None = None
    odd = ""  # the question whose first answer cannot be read

    def kill() -> Odd:
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return Odd(status=503)  # to nobody

    def hook(number: int, question: str) -> Odd | None:
        nonlocal odd
        if number in (1, 7, 16):  # the seventh is the second attempt at the fifth that was answered
            return kill()
        if number == 6:
            odd = question
            return Odd(content="A and B")
        return None

    answers = place / "judgings/killed/answers.jsonl"
    process = start(place, judge)
    wait_for(lambda: answers.is_file() and answers.read_bytes().count(b"\n") >= 3, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(lines(answers)) < 24
    written, requests = answers.read_bytes(), judge.requests
    assert requests == 0
    judge.hook = hook
    for _ in range(3):
        process = start(place, judge)
        assert process.wait(timeout=120) == -signal.SIGKILL
        assert judge.requests > requests
        requests = judge.requests
    process = start(place, judge)
    assert process.wait(timeout=120) == 0
    assert answers.read_bytes().startswith(written)
    asked = Counter(judge.questions)
    assert {question for question, count in asked.items() if count != 1} == {odd}
    assert asked[odd] == 2
    assert len(asked) == 24
    result = read_judging(place / "judgings/killed")
    assert result.spent.answers == len(judge.questions) == 25

    judge.hook = None
    sampling = {"max_new_tokens": 150, "temperature": 0.8, "top_p": None, "seed": 1}
    alone = judged(
        request(judge, limit=12, name="alone", sampling=sampling),
        lambda run, prompts: complete(run, prompts, Sampling(**sampling), device="cpu"),
    )
    assert dataclasses.replace(result, spent=alone.spent) == alone


def test_a_torn_line_is_cut_off_and_asked_again(
    place: Path, judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    first = judged(request(judge))
    path = Path("judgings/one/verdicts.jsonl")
    path.write_bytes(path.read_bytes()[:-30])
    second = judged(request(judge))
    assert "the last line is torn" in capsys.readouterr().err
    assert judge.requests == 9
    assert second == first


@pytest.mark.parametrize("edit", ["1.0", "0.25", '"a"', "null"])
def test_an_edited_verdict_is_refused(place: Path, judge: JudgeServer, edit: str) -> None:
    judged(request(judge))
    path = Path("judgings/one/verdicts.jsonl")
    first, _, rest = path.read_text().partition("\n")
    row = json.loads(first)
    row["dollars"] = json.loads(edit)
    path.write_text(f"{json.dumps(row, ensure_ascii=False)}\n{rest}")
    with pytest.raises(GptlabError, match=r"verdicts\.jsonl:1: damaged .*delete the line"):
        judged(request(judge))


def test_an_edited_result_is_refused(place: Path, judge: JudgeServer) -> None:
    judged(request(judge))
    path = Path("judgings/one/result.json")
    path.write_text(path.read_text().replace('"unread": 0', '"unread": 1'))
    with pytest.raises(GptlabError, match="it was edited"):
        read_judging(path.parent)
    with pytest.raises(GptlabError, match=r"no result\.json"):
        read_judging(path.parent.parent)


def test_two_processes_do_not_share_a_book(place: Path, judge: JudgeServer) -> None:
    with open_book(Path("judgings/one")), pytest.raises(BusyError, match="another process judges into it"):
        judged(request(judge))


# ---------------------------------------------------------------- money


def test_a_budget_is_a_hard_stop_and_counts_all_sessions(place: Path, judge: JudgeServer) -> None:
    paid = {"price_in": 10.0, "price_out": 100.0, "judge_tokens": 40, "repeats": 2}
    each = (200 * 10 + 40 * 100) / 1e6
    with pytest.raises(BudgetSpentError, match=r"budget=0\.05: \$0\.0\d+ of it are spent.* are left") as stop:
        judged(request(judge, budget=0.05, **paid))
    spent = judge.requests * each
    assert 0 < spent <= 0.05
    assert stop.value.result.spent.dollars == pytest.approx(spent)
    assert not stop.value.result.complete
    assert "not all questions" in repr(stop.value.result)
    asked = judge.requests
    with pytest.raises(BudgetSpentError):
        judged(request(judge, budget=0.05, **paid))
    assert judge.requests == asked
    result = judged(request(judge, budget=1.0, **paid))
    assert judge.requests == len(judge.questions) == 16
    assert result.spent.dollars == pytest.approx(16 * each)
    assert result.complete


def test_an_answer_that_is_longer_than_allowed_exceeds_a_budget_once(place: Path, judge: JudgeServer) -> None:
    judge.tokens = (200, 50_000)
    with pytest.raises(BudgetSpentError):
        judged(request(judge, budget=0.03, price_in=0.0, price_out=1.0, judge_tokens=40))
    assert judge.requests == 1


def test_tokens_that_nobody_counts_are_guessed(place: Path, judge: JudgeServer) -> None:
    judge.usage = False
    result = judged(request(judge, price_in=1.0, price_out=1.0))
    assert not result.spent.counted
    assert 100 * 8 < result.spent.tokens_in < 1000 * 8
    assert result.spent.dollars > 0
    assert "about" in repr(result)


PUBLIC = "https://judge.example.com/v1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": PUBLIC}, "say how much at most with budget=DOLLARS"),
        ({"judge": PUBLIC, "budget": 2.0}, "give price_in and price_out"),
        ({"judge": PUBLIC, "budget": 2.0, "price_in": 1.0}, "give price_in and price_out"),
        ({"judge": PUBLIC, "budget": 2.0, "price_in": 1.0, "price_out": 1.0}, "OPENAI_API_KEY holds no key"),
        ({"budget": 0.0}, "dollars above 0"),
        ({"budget": float("nan")}, "dollars above 0"),
        ({"price_in": -1.0}, "dollars, 0 or more"),
        ({"judge_temperature": float("nan")}, "0 to 2"),
        ({"repeats": 0}, "1 or more"),
        ({"judge": "http://judge.example.com/v1"}, "use https"),
        ({"judge": "judge.example.com"}, "no URL"),
        ({"judge": "http://[1"}, "no URL"),
        ({"judge": "https://me:secret@judge.example.com/v1"}, "in the environment"),
        ({"judge": "https://judge.example.com/v1?key=secret"}, "in the environment"),
        ({"key_variable": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE holds no key"),
        ({"name": "../out"}, "without a path"),
        ({"name": ".hidden"}, "without a path"),
        ({"prompts": "storys"}, "did you mean 'stories'"),
        ({"prompts": "none.txt"}, "no such file"),
        ({"criteria": "none.txt"}, "cannot be read"),
    ],
)
def test_what_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, place: Path, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(GptlabError, match=message) as error:
        judge_runs(dataclasses.replace(request(judge), **changes), unwritten)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    assert judge.requests == 0
    assert not Path("judgings").exists()


# ---------------------------------------------------------------- keys


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file() and "runs" not in path.parts)


def test_a_key_is_sent_and_never_kept(place: Path, judge: JudgeServer) -> None:
    said = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}}).encode()
    judge.hook = lambda number, question: (
        Odd(content=f"my key is {KEY}") if number <= 2 else Odd(status=401, body=said) if number == 5 else None
    )
    arguments = ["judge", *map(str, runs(*PAIR)), "--judge", judge.url, "--model", "tiny", "--limit", "3"]
    arguments += ["--max-new-tokens", "8", "--key-variable", "MY_KEY", "--device", "cpu"]
    refused = gptlab(*arguments, cwd=place, check=False, MY_KEY=KEY)
    assert refused.returncode == 2
    assert "answered 401" in refused.stderr
    assert "--key-variable" in refused.stderr
    done = gptlab(*arguments, cwd=place, MY_KEY=KEY)
    assert judge.authorizations == {f"Bearer {KEY}"}
    assert b"my key is [key]" in everything(place)
    assert KEY.encode() not in everything(place)
    assert KEY not in refused.stdout + refused.stderr + done.stdout + done.stderr


def test_the_cost_is_told_without_a_key_and_without_a_server(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    asked = Request(runs(*PAIR), PUBLIC, "large", budget=0.001, price_in=10.0, price_out=10.0)
    folder, result = judge_runs(asked, unwritten, dry_run=True)
    told = capsys.readouterr().err
    assert result is None
    assert "96 questions to ask: about" in told
    assert "more than is left of the budget" in told
    assert not (folder / "verdicts.jsonl").exists()


def test_a_machine_of_ones_own_gets_no_key_unasked(
    place: Path, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judged(request(judge))
    assert judge.authorizations == {"Bearer none"}


def test_without_the_client_nothing_is_written(
    place: Path, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(GptlabError, match=r"pip install 'gptlab\[judge\]'"):
        judge_runs(request(judge), unwritten)
    assert not Path("judgings").exists()


# ---------------------------------------------------------------- answers that are none


ODD: dict[str, tuple[Odd, str]] = {
    "empty": (Odd(), "answered with nothing"),
    "HTML": (Odd(body=b"<html>\n<h1>Hello</h1>\n</html>", kind="text/html"), "no completion"),
    "500": (Odd(status=500, body=b"<html>\nbroken\n</html>", kind="text/html"), "answered 500"),
    "401": (Odd(status=401, body=b'{"error": {"message": "no\\nno"}}'), "check the key"),
    "403": (Odd(status=403, body=b"[]"), "answered 403"),
    "404": (Odd(status=404, body=b'{"detail": "no such model"}'), "name of the model"),
    "429": (Odd(status=429, body=b'{"error": {"message": "slow down"}}'), "slow down.*wait"),
    "400": (Odd(status=400, body=b'{"error": "context too long"}'), "answered 400"),
    "truncated": (Odd(body=b'{"choices": [{"message": {"content": "{'), "no completion"),
    "no choices": (Odd(body=b'{"choices": []}'), "no completion"),
    "a list": (Odd(body=b"[1, 2]"), "no completion"),
    "deep": (Odd(body=b"[" * 100_000), "no completion"),
    "not UTF-8": (Odd(body=b'{"choices": "\xff"}'), "no completion"),
    "huge": (Odd(body=b'{"choices": "' + b"x" * (5 << 20) + b'"}'), "5,242,895 bytes"),
    "control characters": (Odd(status=500, body=b"\x1b[31mred\x00\x07"), "answered 500"),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_answer_is_one_line_and_what_was_paid_for_is_kept(case: str, place: Path, judge: JudgeServer) -> None:
    odd, message = ODD[case]
    judge.hook = lambda number, question: odd if number > 3 else None
    with pytest.raises(GptlabError, match=message) as error:
        judged(request(judge))
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert len(lines(Path("judgings/one/verdicts.jsonl"))) == 3
    judge.hook = None
    result = judged(request(judge))
    assert result.spent.answers == len(judge.questions) - (odd.status == 200) == 8


def test_an_odd_answer_at_the_command_line(place: Path, judge: JudgeServer) -> None:
    judge.hook = lambda number, question: Odd(status=500, body=b"<html>\n<p>\x1b[31mno\n</html>", kind="text/html")
    arguments = ["judge", *map(str, runs(*PAIR)), "--judge", judge.url, "--model", "tiny", "--limit", "2"]
    done = gptlab(*arguments, "--max-new-tokens", "8", "--device", "cpu", cwd=place, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.endswith(f"{line}\n")
    assert "answered 500" in line


def test_an_endpoint_that_is_busy_is_tried_again(place: Path, judge: JudgeServer) -> None:
    judge.hook = lambda number, question: Odd(status=(429, 500, 503)[number % 3]) if number % 4 else None
    assert judged(request(judge)).complete
    assert len(judge.questions) == 8


def test_an_endpoint_that_is_not_there(place: Path, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_RETRIES", 0)
    asked = dataclasses.replace(request(judge), judge="http://127.0.0.1:9/v1")
    with pytest.raises(GptlabError, match="cannot be reached"):
        judged(asked)


def test_an_endpoint_that_knows_the_older_name_of_a_limit(place: Path, judge: JudgeServer) -> None:
    said = b'{"error": {"message": "Unrecognized request argument: max_completion_tokens"}}'
    judge.hook = lambda number, question: (
        Odd(status=400, body=said) if "max_completion_tokens" in judge.bodies[-1] else None
    )
    assert judged(request(judge)).complete
    assert judge.requests == 9
    assert judge.bodies[-1]["max_tokens"] == 1024


UNREADABLE = ["A and B", "", '{"grammar": "A"', '{"overall": "A"}', "[]", '{"overall": {}}', "x" * 100_000]


@pytest.mark.parametrize("said", UNREADABLE, ids=[text[:20] for text in UNREADABLE])
def test_what_cannot_be_read_is_asked_once_more_and_then_counted(said: str, place: Path, judge: JudgeServer) -> None:
    judge.hook = lambda number, question: Odd(content=said) if number in (3, 4) else None
    result = judged(request(judge))
    assert judge.requests == 9
    assert result.unread == 1
    assert result.complete
    assert result.preference is not None
    assert (result.preference.pairs, result.preference.left_out) == (3, 1)
    assert "of 1 of 8 questions no answer could be read" in repr(result)
    assert max(len(row["said"]) for row in lines(Path("judgings/one/verdicts.jsonl"))) <= 4000
    judged(request(judge))
    assert judge.requests == 9


def test_what_cannot_be_read_once_counts_when_it_can(place: Path, judge: JudgeServer) -> None:
    judge.hook = lambda number, question: Odd(content="well…") if number == 3 else None
    assert judged(request(judge)).unread == 0
    assert judge.requests == 9


def test_a_judge_that_is_never_understood_is_not_asked_for_long(place: Path, judge: JudgeServer) -> None:
    judge.hook = lambda number, question: Odd(content="I cannot help with that.")
    with pytest.raises(GptlabError, match=r"none of the first 10 answers can be read, the last was 'I cannot"):
        judged(request(judge, limit=40))
    assert judge.requests == 20


# ---------------------------------------------------------------- which runs


@pytest.mark.parametrize(
    ("patterns", "options", "message"),
    [
        (("base-*seed1", "base-*seed1"), {}, "named twice"),
        (("base-*",), {}, "1 configs.*with grade"),
        (("base-*", "idea-*"), {"grade": True}, r"2 configs.*without grade"),
        (("base-*seed[23]", "idea-*seed1"), {}, "no seed has a run of both"),
    ],
)
def test_runs_that_make_no_arms(patterns: tuple[str, ...], options: dict[str, bool], message: str, place: Path) -> None:
    with pytest.raises(GptlabError, match=message):
        read_study(runs(*patterns), **{"grade": False, **options})


def test_a_run_without_weights_is_refused(place: Path) -> None:
    folder = place / runs("base-*seed1")[0].name
    shutil.copytree(runs("base-*seed1")[0], folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(GptlabError, match=r"has no model\.safetensors; train it to its end"):
        read_study([folder], grade=False)


def test_two_runs_of_one_seed_are_refused(place: Path) -> None:
    folder = runs("base-*seed1")[0]
    twin = place / folder.name.replace("base", "copy")
    shutil.copytree(folder, twin)
    with pytest.raises(GptlabError, match="are both of seed 1"):
        read_study([*runs("base-*"), twin], grade=True)


@pytest.mark.parametrize("scores", [{"overall": 1.0}, {"overall": 7.0}, {"overall": -1.0, "plot": 0.5}, {}])
def test_scores_that_no_answer_can_have_given_are_refused(
    scores: dict[str, float], place: Path, judge: JudgeServer
) -> None:
    judged(request(judge, criteria="plot"))
    path = Path("judgings/one/verdicts.jsonl")
    first, _, rest = path.read_text().partition("\n")
    row = {**json.loads(first), "scores": scores}
    del row["seal"]  # as who means the edit
    path.write_text(f"{json.dumps(row)}\n{rest}")
    with pytest.raises(GptlabError, match="none that were asked for"):
        judged(request(judge, criteria="plot"))
