"""The core of multiple choice: which ids are scored, that batches change nothing, which answer is taken."""

from __future__ import annotations

import math

import pytest
import torch

from gptlab.errors import DataError
from gptlab.evals import likelihood
from gptlab.evals.multiple_choice import Answer, Question, accuracy, answer_questions, encode_question
from gptlab.tokenizer import byte_tokenizer


def question(*choices: str, context: str = "Run: a man runs. he", gold: int = 0) -> Question:
    return Question("q", (context,) * len(choices), choices, gold)


def test_the_choice_is_what_follows_the_context_s_own_tokens(tokenizer) -> None:
    context, text = "A man x is p", "ing on the u."
    pair = encode_question(tokenizer, question(text, context=context), 100)[0]
    assert tokenizer.decode(pair.ids[1:]) == f"{context} {text}"
    assert pair.ids[0] == tokenizer.end_of_text
    assert pair.count == len(tokenizer.encode(f"{context} {text}")) - len(tokenizer.encode(context))
    # Blanks at the end of a context are the choice's, as tokens of words begin with their blank.
    blank = encode_question(tokenizer, question(text, context=context + " \n"), 100)[0]
    assert tokenizer.decode(blank.ids[-blank.count :]) == f" \n {text}"


def test_a_long_context_is_cut_on_the_left_and_a_long_choice_refused() -> None:
    byte = byte_tokenizer()
    asked = question("0123456789", context="a" * 50)
    whole, cut = encode_question(byte, asked, 61)[0], encode_question(byte, asked, 60)[0]
    assert (len(whole.ids), whole.truncated) == (62, False)
    assert (cut.ids, cut.truncated, cut.count) == (whole.ids[1:], True, 11)
    only = encode_question(byte, asked, 11)[0]
    assert byte.decode(only.ids) == "a 0123456789"
    with pytest.raises(DataError, match="11 tokens does not fit the model's context of 10"):
        encode_question(byte, asked, 10)
    with pytest.raises(DataError, match="no tokens of its own"):
        encode_question(byte, question("a", ""), 100)


def test_batches_are_the_rows_one_by_one(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(byte_tokenizer(), context=64)
    texts = [["stops.", "x" * 40, "goes on and on", "."], ["a", "bb"], ["is there", "is where", "or not"]]
    asked = [question(*row, context="He " * 7 * (i + 1)) for i, row in enumerate(texts)]
    expected = []
    for row in asked:
        for pair in encode_question(run.tokenizer, row, 64):
            ids = torch.tensor(pair.ids)
            with torch.no_grad():
                logp = run.model(ids[None, :-1], return_logits=True)[0].double().log_softmax(-1)
            expected.append(logp.gather(-1, ids[1:, None])[-pair.count :].sum().item())
    for places in (1, 100, 1 << 16):
        monkeypatch.setitem(likelihood._BATCH_TOKENS, "cpu", places)
        answers = answer_questions(run, asked, description="test")
        assert [a.question for a in answers] == asked
        assert [len(a.logprobs) for a in answers] == [4, 2, 3]
        assert [v for a in answers for v in a.logprobs] == pytest.approx(expected, rel=1e-5)


def test_contexts_may_differ_while_the_continuation_is_shared(make_run) -> None:
    run = make_run(byte_tokenizer(), context=64)
    contexts = ("It was Ann, so Ann", "It was Ann, so Bob")
    shared = Question(1, contexts, ("slept.", "slept."), 0)
    apart = [Question(i, (context,), ("slept.",), 0) for i, context in enumerate(contexts)]
    (both,) = answer_questions(run, [shared], description="test")
    single = [a.logprobs[0] for a in answer_questions(run, apart, description="test")]
    assert both.logprobs == pytest.approx(single)
    assert single[0] != pytest.approx(single[1])


def test_acc_goes_by_the_sum_and_acc_norm_by_characters() -> None:
    # Per character: −1, −0.9 and, because é is one character but two bytes, −1.2; per byte the last would win.
    asked = question("ab", "a" * 10, "é" * 5, gold=1)
    answer = Answer(asked, (-2.0, -9.0, -6.0), (1, 4, 5), False)
    assert (answer.predicted, answer.predicted_norm) == (0, 1)
    assert (answer.record()["acc"], answer.record()["acc_norm"]) == (0, 1)
    tie = Answer(question("ab", "cd"), (-1.0, -1.0), (1, 1), False)
    assert (tie.predicted, tie.predicted_norm) == (0, 0)


def test_accuracy_and_its_error() -> None:
    p, error = accuracy([1, 0, 0, 1, 1])
    assert p == 0.6
    assert error == pytest.approx(math.sqrt(0.6 * 0.4 / 4))
    assert accuracy([1]) == (1.0, None)
