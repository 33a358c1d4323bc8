"""The server, asked by OpenAI's own client: what it answers is what the run says."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from serving.place import CONTEXT, Place, ask_raw, read_until, running

from gptlab.inference.chat import render_chat
from gptlab.inference.generate import Sampling, generate
from gptlab.run import Run
from gptlab.serving.models import Limits

openai = pytest.importorskip("openai")
PROMPTS = ["the cat", "a", "Once upon a time there was", "é ü ß 漢字", "x" * 60, "def f(x):"]


def alone(run: Run, ids: list[int], length: int, **options: Any) -> str:
    """What the run itself says, without a server."""
    sampling = Sampling(length, **{"temperature": 0.0, **options})
    (found,) = generate(run.generator, [ids], sampling, stop_ids=run.tokenizer.stop_ids, device=run.device)
    return run.tokenizer.decode_continuation(found)


def test_models(place: Place) -> None:
    client = place.openai
    listed = client.models.list().data
    assert [each.id for each in listed] == ["base", "talks"]
    assert client.models.retrieve("talks").model_dump()["max_model_len"] == CONTEXT
    with pytest.raises(openai.NotFoundError, match="there is no model 'tolks' here; did you mean 'talks'"):
        client.models.retrieve("tolks")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_greedy_completion_is_what_the_run_says(place: Place, runs: list[Run], prompt: str) -> None:
    found = place.openai.completions.create(model="base", prompt=prompt, max_tokens=120, temperature=0)
    assert found.choices[0].text == alone(runs[0], runs[0].encode_prompt(prompt), 120)
    assert found.object == "text_completion"
    usage = found.usage
    assert usage.prompt_tokens == len(runs[0].encode_prompt(prompt))
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert (usage.completion_tokens == 120) == (found.choices[0].finish_reason == "length")


def test_ids_are_a_prompt_and_several_prompts_are_answered_in_their_order(place: Place, runs: list[Run]) -> None:
    client, run = place.openai, runs[0]
    ids = [run.encode_prompt(prompt) for prompt in PROMPTS[:3]]
    expected = [alone(run, each, 20) for each in ids]
    options: dict[str, Any] = {"model": "base", "max_tokens": 20, "temperature": 0}
    assert client.completions.create(prompt=ids[1], **options).choices[0].text == expected[1]
    assert [c.text for c in client.completions.create(prompt=ids, **options).choices] == expected
    many = client.completions.create(prompt=PROMPTS[:3], n=2, **options).choices
    assert [c.text for c in many] == [text for text in expected for _ in range(2)]
    assert [c.index for c in many] == list(range(6))


def test_a_stream_adds_up_to_the_whole(place: Place) -> None:
    client = place.openai
    options: dict[str, Any] = {"model": "base", "prompt": PROMPTS[:2], "n": 2, "max_tokens": 50, "temperature": 0.8}
    options |= {"seed": 3, "logprobs": 2}
    whole = client.completions.create(**options)
    texts, offsets, reasons, usage = [""] * 4, [[] for _ in range(4)], {}, None
    chunks = 0
    for chunk in client.completions.create(stream=True, stream_options={"include_usage": True}, **options):
        chunks, usage = chunks + 1, chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            offsets[choice.index] += choice.logprobs.text_offset
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices]
    assert [reasons[number] for number in range(4)] == [choice.finish_reason for choice in whole.choices]
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert chunks > 50


def test_a_chat_is_its_template(place: Place, runs: list[Run]) -> None:
    client, run = place.openai, runs[1]
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    ids = run.tokenizer.encode(render_chat(run.tokenizer, turns), allow_special=True)
    expected = alone(run, ids, CONTEXT - len(ids))  # by default to the end of the context
    options: dict[str, Any] = {"model": "talks", "messages": turns, "temperature": 0}
    found = client.chat.completions.create(**options)
    assert found.choices[0].message.content == expected
    assert found.choices[0].message.role == "assistant"
    parts = [{"role": "system", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    streamed = list(client.chat.completions.create(**{**options, "messages": parts}, stream=True))
    assert streamed[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == expected
    assert streamed[-1].choices[0].finish_reason == found.choices[0].finish_reason
    short = client.chat.completions.create(**options, max_completion_tokens=5, logprobs=True, top_logprobs=2)
    content = short.choices[0].logprobs.content
    assert len(content) == short.usage.completion_tokens == 5
    assert [content[0].logprob, content[0].token] == [
        content[0].top_logprobs[0].logprob,
        content[0].top_logprobs[0].token,
    ]
    assert b"".join(bytes(each.bytes) for each in content).decode(errors="replace") == short.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="base has no chat template"):
        client.chat.completions.create(**{**options, "model": "base"})


def test_stops_end_a_text_wherever_tokens_are_cut(place: Place, runs: list[Run]) -> None:
    client, run = place.openai, runs[0]
    text = alone(run, run.encode_prompt("the cat"), 60)
    options: dict[str, Any] = {"model": "base", "prompt": "the cat", "max_tokens": 60, "temperature": 0}
    for stop in (text[10:13], [text[30:33], text[20:22]], [text[5], "never there", text[40:], text[6]]):
        stops = [stop] if isinstance(stop, str) else stop
        place_of = min(text.find(each) for each in stops if each in text)
        whole = client.completions.create(stop=stop, **options).choices[0]
        assert (whole.text, whole.finish_reason) == (text[:place_of], "stop")
        streamed = client.completions.create(stop=stop, stream=True, **options)
        assert "".join(chunk.choices[0].text for chunk in streamed) == text[:place_of]
    never = text[50:] + "\0"  # what is held back for it comes in the end
    assert client.completions.create(stop=never, **options).choices[0].text == text


def test_a_seed_repeats_and_choices_have_seeds_of_their_own(place: Place, runs: list[Run]) -> None:
    client, run = place.openai, runs[0]
    options: dict[str, Any] = {"model": "base", "prompt": "the cat", "max_tokens": 30, "top_p": 0.9}
    found = [choice.text for choice in client.completions.create(n=3, seed=11, **options).choices]
    ids = run.encode_prompt("the cat")
    assert found == [alone(run, ids, 30, temperature=1.0, top_p=0.9, seed=11 + number) for number in range(3)]
    assert len(set(found)) == 3
    free = client.completions.create(n=2, **options).choices
    assert free[0].text != free[1].text


def test_a_penalty_is_that_of_generation_and_scores_stay_the_models_own(place: Place, runs: list[Run]) -> None:
    client, run = place.openai, runs[0]
    ids = run.encode_prompt("the cat the cat")
    for more in ({"temperature": 0}, {"temperature": 0.9, "seed": 4}):
        options: dict[str, Any] = {"model": "base", "prompt": "the cat the cat", "max_tokens": 40, **more}
        expected = alone(run, ids, 40, repetition_penalty=1.4, **more)
        found = client.completions.create(extra_body={"repetition_penalty": 1.4}, **options).choices[0]
        assert found.text == expected
        assert found.text != client.completions.create(**options).choices[0].text
        off = client.completions.create(extra_body={"repetition_penalty": 1.0}, **options).choices[0]
        assert off.text == client.completions.create(**options).choices[0].text
    options = {"model": "base", "prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 1}
    found = client.completions.create(extra_body={"repetition_penalty": 100.0}, **options).choices[0].logprobs
    plain = client.completions.create(**options).choices[0].logprobs
    assert found.top_logprobs == plain.top_logprobs


def test_the_choices_of_a_prompt_read_it_once(place: Place, runs: list[Run]) -> None:
    client, run, served = place.openai, runs[0], place.served[0]
    ids = run.encode_prompt("Once upon a time there was")
    read: list[torch.Size] = []
    handle = served.engine.model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].shape))
    try:
        options: dict[str, Any] = {"model": "base", "prompt": ids, "max_tokens": 30, "n": 8, "seed": 2, "logprobs": 1}
        found = client.completions.create(echo=True, **options).choices
    finally:
        handle.remove()
    assert read[0] == (1, len(ids))
    assert {shape[1] for shape in read[1:]} <= {1}
    texts = [alone(run, ids, 30, temperature=1.0, seed=2 + number) for number in range(8)]
    assert [choice.text.removeprefix(run.tokenizer.decode_continuation(ids, begins=True)) for choice in found] == texts
    scores = [choice.logprobs.token_logprobs[: len(ids)] for choice in found]
    assert all(each == scores[0] for each in scores)


def test_echo_scores_the_prompt(place: Place, runs: list[Run]) -> None:
    client, run = place.openai, runs[0]
    ids = run.encode_prompt("the cat é")
    with torch.no_grad():
        rows = run.model(torch.tensor([ids]), return_logits=True)[0].log_softmax(-1)
    expected = [float(rows[place, token]) for place, token in enumerate(ids[1:])]
    options: dict[str, Any] = {"model": "base", "echo": True, "logprobs": 2, "temperature": 0}
    text = client.completions.create(prompt="the cat é", max_tokens=0, **options)
    assert text.choices[0].text == "the cat é"
    assert text.usage.completion_tokens == 0
    scores = text.choices[0].logprobs
    assert scores.token_logprobs == pytest.approx(expected, abs=1e-4)
    assert scores.tokens == [*"the cat ", "bytes:\\xc3", "bytes:\\xa9"]
    assert scores.text_offset == [*range(8), 8, 8]
    assert [max(top.values()) for top in scores.top_logprobs] == pytest.approx(rows[:-1].amax(-1).tolist(), abs=1e-4)
    by_ids = client.completions.create(prompt=ids, max_tokens=1, **options).choices[0]
    assert by_ids.logprobs.token_logprobs[0] is None
    assert by_ids.logprobs.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
    assert by_ids.logprobs.token_logprobs[-1] == pytest.approx(float(rows[-1].max()), abs=1e-4)
    assert by_ids.text.startswith(f"{run.tokenizer.end_of_text_token}the cat é")


def test_64_clients_at_once_get_what_each_gets_alone(place: Place, runs: list[Run]) -> None:
    run, client = runs[0], place.openai
    prompts = [f"{PROMPTS[number % 6]} {number}" for number in range(64)]
    lengths = [10 + 7 * number % 90 for number in range(64)]
    expected = [alone(run, run.encode_prompt(p), n) for p, n in zip(prompts, lengths, strict=True)]

    def ask(number: int) -> str:
        options: dict[str, Any] = {"prompt": prompts[number], "max_tokens": lengths[number], "temperature": 0}
        if number % 2:
            return client.completions.create(model="base", **options).choices[0].text
        chunks = client.completions.create(model="base", stream=True, **options)
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(ask, range(64))) == expected
    assert place.served[0].engine.load.most_at_once == 32  # they were together
    assert place.settled()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(runs: list[Run], stream: bool) -> None:
    limits = Limits(max_batch=1, max_waiting=1, max_new_tokens=10**9)
    with running(runs[:1], limits) as place:
        gone = ask_raw(place.port, max_tokens=10**9, stream=stream)
        while not place.served[0].engine.load.running:
            time.sleep(0.005)
        waits = ask_raw(place.port, max_tokens=3)
        while not place.served[0].engine.load.waiting:
            time.sleep(0.005)
        with pytest.raises(openai.RateLimitError, match="base is busy: 1 more would wait beside 1, and 1 may") as error:
            place.openai.completions.create(model="base", prompt="a")
        assert error.value.code == "rate_limit_exceeded"
        gone.close()
        assert b'"finish_reason":"length"' in read_until(waits, b"usage")
        waits.close()
        assert place.settled()


def test_a_client_that_stops_reading_holds_nobody_and_is_given_up(runs: list[Run]) -> None:
    limits = Limits(max_batch=2, max_new_tokens=10**9, patience=0.5)
    with running(runs[:1], limits) as place:
        stuck = ask_raw(place.port, max_tokens=10**9, stream=True, logprobs=20)
        read_until(stuck, b"data: ")
        client, load = place.openai, place.served[0].engine.load
        expected = alone(runs[0], runs[0].encode_prompt("the cat"), 40)
        for _ in range(3):
            found = client.completions.create(model="base", prompt="the cat", max_tokens=40, temperature=0)
            assert found.choices[0].text == expected
        assert place.settled()  # though its client is still there, and has an answer of 10^9 tokens to come
        assert load.tokens > 100
        stuck.close()


def test_a_body_that_does_not_come_is_not_waited_for(runs: list[Run]) -> None:
    with running(runs[:1], Limits(patience=0.3)) as place:
        connection = socket.create_connection(("127.0.0.1", place.port), timeout=60)
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert b"the body did not come within 0.3 seconds" in read_until(connection, b"}}")
        connection.close()


def test_what_a_page_of_another_site_sends_is_refused(place: Place) -> None:
    assert place.http.get("/models", headers={"origin": f"http://localhost:{place.port}"}).status_code == 200
    for headers in ({"origin": "https://example.com"}, {"host": "example.com"}, {"origin": "null"}):
        found = place.http.get("/models", headers=headers)
        assert found.status_code == 403
        assert "its own machine alone" in found.json()["error"]["message"]


def test_a_server_that_ends_tells_who_waits(runs: list[Run]) -> None:
    said: list[str] = []
    with running(runs[:1], Limits(max_new_tokens=10**9)) as place:

        def wait() -> None:
            connection = ask_raw(place.port, max_tokens=10**9, stream=True)
            read_until(connection, b"data: ")
            while part := connection.recv(4096):
                said.append(part.decode(errors="replace"))
            connection.close()

        thread = threading.Thread(target=wait)
        thread.start()
        while not place.served[0].engine.load.running:
            time.sleep(0.005)
    thread.join(30)
    assert not thread.is_alive()
    assert "the server is ending" in "".join(said)


def test_a_port_that_is_taken(place: Place) -> None:
    from gptlab.errors import GptlabError
    from gptlab.serving.server import listen

    with pytest.raises(GptlabError, match=rf"cannot listen at 127\.0\.0\.1:{place.port}: .*choose another port"):
        listen("127.0.0.1", place.port)
    with pytest.raises(GptlabError, match=r"cannot listen at no\.such\.host\.invalid:80"):
        listen("no.such.host.invalid", 80)
