"""Whatever is sent, the answer is a JSON error of the 4xx, and the server goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving.place import CONTEXT, Place

GOOD: dict[str, dict[str, Any]] = {
    "/completions": {"model": "base", "prompt": "a", "max_tokens": 2},
    "/chat/completions": {"model": "talks", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
}
TURN = {"role": "user", "content": "a"}
REMOVED = "(left out)"

WRONG: list[tuple[str, dict[str, Any], str]] = [
    # endpoint, what is changed of a good request, and what the error says
    ("/completions", {"model": "bse"}, "there is no model 'bse' here; did you mean 'base'"),
    ("/completions", {"model": REMOVED}, "model is missing"),
    ("/completions", {"model": 3}, "model: must be a valid string (given: 3)"),
    ("/completions", {"prompt": REMOVED}, "prompt is missing"),
    ("/completions", {"prompt": ""}, "prompt: is empty"),
    ("/completions", {"prompt": []}, "prompt: is empty"),
    ("/completions", {"prompt": [[]]}, "prompt: is empty"),
    ("/completions", {"prompt": ["a", ""]}, "prompt: is empty"),
    ("/completions", {"prompt": None}, "prompt: must be a text, a list of texts"),
    ("/completions", {"prompt": ["a", 1]}, "prompt: must be a text, a list of texts"),
    ("/completions", {"prompt": [True, False]}, "prompt: must be a text, a list of texts"),
    ("/completions", {"prompt": [1.5]}, "prompt: must be a text, a list of texts"),
    ("/completions", {"prompt": {"text": "a"}}, "prompt: must be a text, a list of texts"),
    ("/completions", {"prompt": [-1]}, "prompt: id -1 is not in the vocabulary; ids are 0..256"),
    ("/completions", {"prompt": [10**30]}, "is not in the vocabulary"),
    ("/completions", {"prompt": "a" * 200}, f"the prompt has 201 tokens, and base sees {CONTEXT}; shorten it"),
    ("/completions", {"prompt": [1] * (CONTEXT + 1)}, f"the prompt has {CONTEXT + 1} tokens"),
    ("/completions", {"max_tokens": -1}, "max_tokens: must be greater than or equal to 0 (given: -1)"),
    ("/completions", {"max_tokens": 10**9}, "max_tokens: 1,000,000,000 is more than the 4,096"),
    ("/completions", {"max_tokens": 1.5}, "max_tokens: must be a valid integer"),
    ("/completions", {"max_tokens": "3"}, "max_tokens: must be a valid integer"),
    ("/completions", {"max_tokens": True}, "max_tokens: must be a valid integer"),
    ("/completions", {"temperature": -0.1}, "temperature: must be greater than or equal to 0"),
    ("/completions", {"temperature": float("nan")}, "temperature"),
    ("/completions", {"temperature": float("inf")}, "temperature"),
    ("/completions", {"temperature": 1e-30}, "temperature: must be 0, or from 1e-06 on"),
    ("/completions", {"temperature": "hot"}, "temperature: must be a valid number (given: 'hot')"),
    ("/completions", {"top_p": 0}, "top_p: must be greater than 0"),
    ("/completions", {"top_p": 1.01}, "top_p: must be less than or equal to 1"),
    ("/completions", {"top_k": 0}, "top_k: must be greater than or equal to 1"),
    ("/completions", {"top_k": 1000}, "top_k: 1,000, and the vocabulary has 257 tokens"),
    ("/completions", {"min_p": 2}, "min_p"),
    ("/completions", {"repetition_penalty": 0}, "repetition_penalty: must be greater than or equal to 0.01"),
    ("/completions", {"repetition_penalty": float("nan")}, "repetition_penalty"),
    ("/chat/completions", {"repetition_penalty": "1"}, "repetition_penalty: must be a valid number"),
    ("/completions", {"beams": 4}, "there is no parameter 'beams' here, or it is not supported"),
    ("/completions", {"n": 0}, "n: must be greater than or equal to 1"),
    ("/completions", {"n": 129}, "n: must be less than or equal to 128"),
    ("/completions", {"prompt": ["a"] * 300}, "300 texts in one request, and this server takes 288 at once"),
    ("/completions", {"seed": 2**70}, "seed"),
    ("/completions", {"stop": [1]}, "stop: must be a text, or a list of texts"),
    ("/completions", {"stop": ["a"] * 17}, "stop: has 17 texts, and 16 may be given"),
    ("/completions", {"logprobs": 21}, "logprobs: must be less than or equal to 20"),
    ("/completions", {"logprobs": True}, "logprobs"),
    ("/completions", {"echo": "yes"}, "echo"),
    ("/completions", {"best_of": 4}, "best_of other than n is not supported"),
    ("/completions", {"suffix": "end"}, "suffix"),
    ("/completions", {"stream": "yes"}, "stream"),
    ("/completions", {"stream_options": {"include_usage": True}}, "stream_options is for a stream"),
    ("/completions", {"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    ("/completions", {"frequency_penalty": 0.5}, "frequency_penalty"),
    ("/completions", {"logit_bias": {"50": 1.0}}, "logit_bias"),
    (
        "/completions",
        {"temprature": 1},
        "there is no parameter 'temprature' here, or it is not supported; did you mean",
    ),
    ("/completions", {"messages": [TURN]}, "there is no parameter 'messages' here"),
    ("/chat/completions", {"model": "base"}, "base has no chat template"),
    ("/chat/completions", {"messages": []}, "messages: list should have at least 1 item"),
    ("/chat/completions", {"messages": "a"}, "messages: must be a valid array"),
    ("/chat/completions", {"messages": [{"role": "user"}]}, "messages.0.content is missing"),
    ("/chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
    ("/chat/completions", {"messages": [{**TURN, "tool_calls": []}]}, "messages.0.tool_calls"),
    ("/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
    ("/chat/completions", {"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ("/chat/completions", {"messages": [{**TURN, "content": "a" * 200}]}, f"talks sees {CONTEXT}; shorten it"),
    ("/chat/completions", {"max_tokens": 0}, "max_tokens must be at least 1"),
    ("/chat/completions", {"max_completion_tokens": 4}, "two names of one thing"),
    ("/chat/completions", {"top_logprobs": 2}, "top_logprobs needs logprobs"),
    ("/chat/completions", {"tools": []}, "there is no parameter 'tools' here"),
    ("/chat/completions", {"response_format": {"type": "json_object"}}, "response_format.type"),
    ("/chat/completions", {"prompt": "a"}, "there is no parameter 'prompt' here"),
]

RAW = [b"", b"{", b"null", b"3", b"[]", b'"text"', b"\xff\xfe", b"[" * 5000, b'{"model": "base", "prompt": "\\ud800"}']
RAW += [b'{"model": "base"', b"NaN", b'{"a":' * 3000, b"9" * 5000, b"{'model': 'base'}"]


def check(answer: httpx.Response, statuses: range = range(400, 500)) -> dict[str, Any]:
    """That it is an error as OpenAI writes them, one line long."""
    assert answer.status_code in statuses, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    assert "Traceback" not in error["message"]
    assert len(error["message"]) < 600
    return dict(error)


def test_every_good_request_is_good(place: Place) -> None:
    for path, body in GOOD.items():
        answer = place.http.post(path, json=body)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("path", "changes", "message"), WRONG, ids=[f"{p} {c!r:.40}" for p, c, _ in WRONG])
def test_what_is_wrong_is_said(place: Place, path: str, changes: dict[str, Any], message: str) -> None:
    body = {key: value for key, value in {**GOOD[path], **changes}.items() if value != REMOVED}
    error = check(place.http.post(path, content=json.dumps(body)))
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


def test_what_is_no_request_at_all(place: Place) -> None:
    for path in GOOD:
        for body in RAW:
            check(place.http.post(path, content=body))
        check(place.http.post(path, content=b" " * (4 * 2**20 + 1)))
        check(place.http.get(path))
    for method, path in (
        ("POST", "/models"),
        ("GET", ""),
        ("GET", "/models/none"),
        ("POST", "/embeddings"),
        ("PUT", "/"),
    ):
        check(place.http.request(method, path))


JUNK: list[Any] = [None, True, False, -1, 0, 1, 2**31, -(2**63), 10**40, 0.5, -0.0, 1e308, float("nan"), float("-inf")]
JUNK += [
    "",
    "a",
    "\0",
    "\N{PILE OF POO}" * 50,
    [],
    [[]],
    {},
    [None],
    [1, "a"],
    [[1], "a"],
    {"a": {"b": []}},
    [{}],
    [[[[]]]],
]


def mutations(count: int) -> Iterator[tuple[str, bytes]]:
    """Good requests with one or two things done to them, the same each time."""
    dice = random.Random(0)
    names = [
        "prompt",
        "messages",
        "n",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "stream",
    ]
    names += ["logprobs", "echo", "model", "stream_options", "logit_bias", "metadata", "user", "top_logprobs", "\0x"]
    for _ in range(count):
        path = dice.choice(list(GOOD))
        body = dict(GOOD[path])
        for _ in range(dice.randint(1, 3)):
            body[dice.choice(names)] = dice.choice(JUNK)
        content = json.dumps(body).encode()
        if dice.random() < 0.3:
            place = dice.randrange(len(content))
            content = content[:place] + bytes(dice.choices(range(256), k=dice.randint(0, 4))) + content[place + 1 :]
        yield path, content


def test_the_server_survives_hundreds_of_odd_requests(place: Place) -> None:
    refused = 0
    for path, content in mutations(400):
        answer = place.http.post(path, content=content)
        if answer.status_code != 200:  # some changes do no harm
            check(answer)
            refused += 1
    assert refused > 200
    assert place.http.post("/completions", json=GOOD["/completions"]).status_code == 200
    assert place.settled()
