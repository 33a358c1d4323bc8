"""Clients as they are: curl, and those who do not read, or say nothing."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import socket
import subprocess
import time
from typing import Any

import pytest
from serving.place import Place, ask_raw, read_until, running

from gptlab.inference.generate import Sampling, generate
from gptlab.run import Run
from gptlab.serving.answers import Piece
from gptlab.serving.models import Limits

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on this machine")


def curl(place: Place, path: str, body: str, *options: str) -> tuple[int, str]:
    """The status and the body that curl gets."""
    head = ["curl", "--silent", "--show-error", "--no-buffer", "--max-time", "60", "--noproxy", "*"]
    asked = ["--header", "Content-Type: application/json", "--data", body, "--write-out", "\n%{http_code}"]
    done = subprocess.run([*head, *asked, *options, f"{place.url}{path}"], capture_output=True, check=True, text=True)
    text, _, status = done.stdout.rpartition("\n")
    return int(status), text


def greedy(run: Run, prompt: str, length: int) -> str:
    ids = run.encode_prompt(prompt)
    sampling = Sampling(length, 0.0)
    (found,) = generate(run.generator, [ids], sampling, stop_ids=run.tokenizer.stop_ids, device=run.device)
    return run.tokenizer.decode_continuation(found)


@needs_curl
def test_curl_gets_a_completion_a_stream_and_an_error(place: Place, runs: list[Run]) -> None:
    asked: dict[str, Any] = {"model": "base", "prompt": "the cat é", "max_tokens": 20, "temperature": 0}
    expected = greedy(runs[0], "the cat é", 20)
    status, body = curl(place, "/completions", json.dumps(asked))
    assert status == 200
    assert json.loads(body)["choices"][0]["text"] == expected

    status, body = curl(place, "/completions", json.dumps({**asked, "stream": True}))
    assert status == 200
    events = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    assert body.count("data: ") == len(events) > 10
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected
    assert chunks[-1]["choices"][0]["finish_reason"] in ("length", "stop")

    for wrong, message in ((json.dumps({**asked, "top_p": 2}), "top_p: must be"), ("{", "the body is not JSON")):
        status, body = curl(place, "/completions", wrong)
        assert status == 400
        assert message in json.loads(body)["error"]["message"]
    status, body = curl(place, "/nowhere", "{}")
    assert (status, json.loads(body)["error"]["type"]) == (404, "invalid_request_error")


@needs_curl
def test_curl_talks(place: Place) -> None:
    asked = {"model": "talks", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "stream": True}
    status, body = curl(place, "/chat/completions", json.dumps(asked), "--http1.1", "--header", "Expect:")
    assert status == 200
    assert json.loads(body.split("\n\n")[0].removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
    assert body.rstrip().endswith("data: [DONE]")


def closed_after(connection: socket.socket, seconds: float) -> bool:
    """Whether the server drops the connection within that time, without a byte of it being read before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            connection.send(b"\n")  # a socket that was dropped answers with a reset, and then refuses
            continue
        return True
    return False


def pieces() -> int:
    """Parts of answers that somebody still holds."""
    gc.collect()
    return sum(type(each) is Piece for each in gc.get_objects())


def test_clients_that_stop_reading_lose_their_connection_and_leave_no_memory(runs: list[Run]) -> None:
    patience, before = 1.0, pieces()
    with running(runs[:1], Limits(max_batch=9, max_new_tokens=10**9, patience=patience)) as place:
        stuck = [ask_raw(place.port, max_tokens=10**9, stream=True, logprobs=20) for _ in range(8)]
        for connection in stuck:
            read_until(connection, b"data: ")
        began, expected = time.monotonic(), greedy(runs[0], "the cat", 40)
        while time.monotonic() < began + patience:  # nobody is held up while they wait
            found = place.http.post(
                "/completions", json={"model": "base", "prompt": "the cat", "max_tokens": 40, "temperature": 0}
            )
            assert found.json()["choices"][0]["text"] == expected
        assert place.settled()  # nothing is written for them any more
        assert all(closed_after(connection, 30) for connection in stuck)
        made = place.served[0].engine.load.tokens
        assert made < 10**5
        for _ in range(100):  # what was made of their answers goes with them
            if (left := pieces() - before) <= 1:
                break
            time.sleep(0.05)
        assert left <= 1
        for connection in stuck:
            connection.close()


def test_an_answer_that_is_not_read_is_not_kept(runs: list[Run]) -> None:
    """One whole, too large for what the machine holds for a client, whose connection the server has done with."""
    with running(runs[:1], Limits(patience=0.5)) as place:
        asked = {"n": 16, "max_tokens": 300, "logprobs": 20}
        connection = ask_raw(place.port, receives=4096, **asked)
        while not place.served[0].engine.load.tokens:
            time.sleep(0.01)
        assert place.settled()
        assert closed_after(connection, 30)
        connection.close()


def test_a_client_that_reads_slowly_is_waited_for(runs: list[Run]) -> None:
    with running(runs[:1], Limits(patience=1.0)) as place:
        connection = ask_raw(place.port, receives=2**15, n=32, max_tokens=400, logprobs=20)
        found = read_until(connection, b"{")
        began = time.monotonic()
        while b'"usage"' not in found[-400:]:
            part = connection.recv(2**14)
            assert part, len(found)
            found += part
            if time.monotonic() < began + 3:  # three times as long as it could be silent for
                time.sleep(0.02)
        assert time.monotonic() > began + 3
        assert len(json.loads(found.partition(b"\r\n\r\n")[2])["choices"]) == 32
        connection.close()


def test_a_client_that_says_nothing_is_not_kept(runs: list[Run]) -> None:
    with running(runs[:1], Limits(patience=0.3)) as place:
        silent = [socket.create_connection(("127.0.0.1", place.port), timeout=30) for _ in range(3)]
        silent[1].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: local")
        for connection in silent:
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(100) == b""
            connection.close()
        assert place.http.get("/models").status_code == 200
