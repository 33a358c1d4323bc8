"""`gptlab serve` and `gptlab chat`, as processes: through a pipe, and in a terminal."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import gptlab

from gptlab.inference.generate import Sampling
from gptlab.run import Run

pytestmark = pytest.mark.slow
GPTLAB = [sys.executable, "-m", "gptlab"]


def _hear_interrupts() -> None:
    """Before a program begins: a suite in the background ignores SIGINT, and what it starts would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def talk(run: Run, said: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """What `gptlab chat` makes of standard input."""
    done = subprocess.run(
        [*GPTLAB, "chat", str(run.folder), "--temperature", "0", *options],
        input=said.encode(),
        capture_output=True,
        check=False,
    )
    answered = subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
    assert not check or done.returncode == 0, answered.stderr
    return answered


def answer(run: Run, turns: list[dict[str, str]], length: int) -> str:
    from gptlab.inference.chat import render_chat
    from gptlab.inference.generate import generate

    ids = run.tokenizer.encode(render_chat(run.tokenizer, turns), allow_special=True)
    (found,) = generate(run.generator, [ids], Sampling(length, 0.0), stop_ids=run.tokenizer.stop_ids, device=run.device)
    return run.tokenizer.decode_continuation(found, begins=True)


def test_a_conversation_through_a_pipe(runs: list[Run]) -> None:
    run = runs[1]
    done = talk(run, "Hi\nAnd you?\n/reset\nHi\n/quit\nnever said\n", "--system", "Short.", "--max-new-tokens", "9")
    turns = [{"role": "system", "content": "Short."}, {"role": "user", "content": "Hi"}]
    first = answer(run, turns, 9)
    more = [*turns, {"role": "assistant", "content": first}, {"role": "user", "content": "And you?"}]
    assert done.stdout == f"{first}\n{answer(run, more, 9)}\n{first}\n"
    assert "/reset forgets everything" in done.stderr
    assert "forgotten" in done.stderr


def test_a_base_model_goes_on_with_the_text_and_says_so(runs: list[Run]) -> None:
    run = runs[0]
    done = talk(run, "the cat\n sat\n", "--max-new-tokens", "9")
    first = run.generate("the cat", max_new_tokens=9, temperature=0)
    second = run.generate(f"the cat{first} sat", max_new_tokens=9, temperature=0)
    assert done.stdout == f"{first}\n{second}\n"
    assert "no conversation" in done.stderr
    refused = talk(run, "", "--system", "Short.", check=False)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: --system needs a chat template")
    many = talk(run, "the cat\n", "--top-k", "1000", check=False)
    assert many.returncode == 2
    assert many.stderr.splitlines()[-1].startswith("error: --top-k is 1000, and the vocabulary has 257 tokens")
    assert talk(runs[1], "the cat\n", "--plain", "--max-new-tokens", "3").stderr.count("no conversation") == 1


def test_a_long_conversation_says_what_the_model_no_longer_sees(runs: list[Run]) -> None:
    done = talk(runs[1], f"{'long ' * 30}\nHi\n", "--max-new-tokens", "2")
    assert "and the model sees the last of them, 96 at most" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no terminals of this kind")
def test_in_a_terminal_an_answer_can_be_stopped_and_the_chat_goes_on(runs: list[Run]) -> None:
    import pty

    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm"
        _hear_interrupts()
        endless = ("--temperature", "0", "--max-new-tokens", "100000000")  # a draw would end it now and then
        os.execv(sys.executable, [*GPTLAB, "chat", str(runs[0].folder), *endless])
    seen = ""

    def wait_for(wanted: Callable[[str], bool]) -> None:
        nonlocal seen
        while not wanted(seen):
            assert select.select([terminal], [], [], 90)[0], seen[-2000:]  # as long as a busy machine takes
            seen += os.read(terminal, 4096).decode(errors="replace")
        seen = ""

    try:
        wait_for(lambda text: text.endswith("> "))
        os.write(terminal, b"the cat\n")
        wait_for(lambda text: len(text) > 200)
        os.write(terminal, b"\x03")
        wait_for(lambda text: "stopped" in text and text.endswith("> "))
        time.sleep(0.5)  # a person's: readline does not hear what comes between its prompt and its waiting
        os.write(terminal, b"\x03")  # where nothing is being said
        wait_for(lambda text: text.endswith("> "))
        os.write(terminal, b"/reset\n")
        wait_for(lambda text: "forgotten" in text and text.endswith("> "))
        os.write(terminal, b"\x04")
        _, status = os.waitpid(child, 0)
        child = 0
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(terminal)
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.fixture
def process(runs: list[Run]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`gptlab serve` of both runs, and its URL."""
    folders = [str(run.folder) for run in runs]
    command = [*GPTLAB, "serve", *folders, "--port", "0"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, preexec_fn=_hear_interrupts) as begun:
        assert begun.stdout is not None
        yield begun, begun.stdout.readline().strip()
        if begun.poll() is None:
            begun.kill()


def test_serve_says_where_it_is_and_ends_when_told(process: tuple[subprocess.Popen[str], str], runs: list[Run]) -> None:
    import openai

    begun, url = process
    assert url.startswith("http://127.0.0.1:")
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=5)
    found = client.completions.create(model="base", prompt="the cat", max_tokens=20, temperature=0)
    assert found.choices[0].text == runs[0].generate("the cat", max_new_tokens=20, temperature=0)
    begun.send_signal(signal.SIGINT)
    _, told = begun.communicate(timeout=60)
    assert begun.returncode == 0
    assert told.splitlines() == ["serving base, talks; Ctrl-C ends", "ended"]


def test_what_serve_refuses(tmp_path: Path, runs: list[Run]) -> None:
    folder = str(runs[0].folder)
    for arguments, message in (
        ([folder, folder], "error: base is the name of two of the runs"),
        ([str(tmp_path)], "error: "),
        ([folder, "--host", "no.such.host.invalid"], "error: cannot listen at no.such.host.invalid:8000: "),
    ):
        done = gptlab("serve", *arguments, cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(message)
        assert "Traceback" not in done.stderr
