"""The text of what is generated is one text: streamed, in a batch, from Python, and with its tokens shown."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from foreign import foreign_tokenizer, smollm2_tokenizer
from rich.console import Console
from torch import Tensor, nn

from gptlab.cli.marks import CUT, END_OF_PROMPT, mark_tokens
from gptlab.cli.sample import _show_samples
from gptlab.config import config_from
from gptlab.errors import DataError
from gptlab.inference.chat import render_chat
from gptlab.inference.generate import Sampling
from gptlab.run import Run
from gptlab.tokenizer import Tokenizer, byte_tokenizer, import_tokenizer, train_bpe

KINDS = ("bpe", "unigram", "wordpiece", "words", "sentencepiece")
PROMPT = "once upon a time"
GOES_ON = " there was a little girl, naïve.\n  She  don't like it 日本の首都 🙂🙂  12345 "


class Reciter(nn.Module):
    """A language model that recites: after n tokens of any text its likeliest next one is `script[n]`."""

    context_length = 4096
    blocks: Sequence[nn.Module] = ()

    def __init__(self, script: Sequence[int], vocab_size: int) -> None:
        super().__init__()
        self.script, self.vocab_size = torch.tensor(script), vocab_size

    def forward(self, ids_BT: Tensor, cache: SimpleNamespace) -> Tensor:
        places = (cache.length + torch.arange(ids_BT.shape[1])).expand(ids_BT.shape)
        return self.script[(places + 1).clamp(max=len(self.script) - 1)]

    def logits(self, hidden: Tensor) -> Tensor:
        return nn.functional.one_hot(hidden, self.vocab_size).float()


def recited(tokenizer: Tokenizer, prompt: str, ids: Sequence[int], folder: Path) -> tuple[Run, Sampling]:
    """A run whose model goes on after `prompt` with `ids`, and how to sample from it."""
    start = [tokenizer.end_of_text, *tokenizer.encode(prompt)]
    model = Reciter([*start, *ids], tokenizer.vocab_size)
    config = config_from({"name": "it"})
    sampling = Sampling(max_new_tokens=len(ids), temperature=0, stop_at_end=False)
    return Run(folder, config, model, tokenizer, torch.device("cpu"), torch.float32), sampling


def four_texts(
    tokenizer: Tokenizer, prompt: str, ids: Sequence[int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """The continuation streamed, in a batch, from Python, and with its tokens shown (whose line ends have a mark)."""
    run, sampling = recited(tokenizer, prompt, ids, folder)

    def shown(prompts: Sequence[str], *, show_tokens: bool = False) -> str:
        capsys.readouterr()
        _show_samples(run, prompts, sampling, show_tokens=show_tokens)
        return capsys.readouterr().out

    stream = shown([prompt]).removeprefix(prompt).removesuffix("\n")
    first, _, second = shown([prompt, prompt]).partition("─")
    assert first.rstrip("\n") == second.strip("─").removeprefix("\n").rstrip("\n")
    batch = first.removeprefix(prompt).removesuffix("\n")
    marked = shown([prompt], show_tokens=True).removesuffix("\n").replace("⏎", "")
    tokens = marked.rpartition(END_OF_PROMPT)[2].replace(CUT, "")
    (python,) = run.generate([prompt], sampling=sampling)
    return [stream, batch, python, tokens]


def continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids that follow those of the prompt in the whole text."""
    whole, start = tokenizer.encode(PROMPT + text), tokenizer.encode(PROMPT)
    assert whole[: len(start)] == start
    return whole[len(start) :]


@pytest.fixture(params=[*KINDS, "bytes", "own", pytest.param("smollm2", marks=pytest.mark.slow)])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    if request.param == "bytes":
        return byte_tokenizer()
    if request.param == "own":
        return train_bpe([GOES_ON * 3, PROMPT], [300], name="own")[0]
    if request.param == "smollm2":
        return import_tokenizer(str(smollm2_tokenizer(tmp_path / "theirs")), name="smollm2")
    foreign_tokenizer(request.param).save(str(tmp_path / "tokenizer.json"))
    return import_tokenizer(str(tmp_path / "tokenizer.json"), name=request.param, end_of_text="</s>")


@pytest.mark.parametrize("text", [GOES_ON, " 🙂🙂🙂", " 日本の首都は", "\n\n  \n indented"])
def test_four_ways_give_one_text(
    tokenizer: Tokenizer, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And where the tokenizer keeps text at all, it is the text that the ids are of."""
    ids = continuation(tokenizer, text)
    texts = four_texts(tokenizer, PROMPT, ids, tmp_path, capsys)
    assert len(set(texts)) == 1, texts
    if tokenizer.keeps_text:
        assert texts[0] == text
    # half a character is one sign of what is missing, and not one for each of its bytes
    if len(ids) > 1:
        assert len(set(four_texts(tokenizer, PROMPT, ids[:-1], tmp_path, capsys))) == 1


def test_words_keep_their_blanks(tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = continuation(tokenizer, " there was a little girl")
    assert set(four_texts(tokenizer, PROMPT, ids, tmp_path, capsys)) == {" there was a little girl"}


def test_from_nothing_a_text_begins_without_a_blank_of_the_tokenizers(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tokenizer.encode("there was")
    assert set(four_texts(tokenizer, "", ids, tmp_path, capsys)) == {"there was"}


@pytest.mark.parametrize("kind", KINDS)
def test_which_tokenizers_keep_text(kind: str, tmp_path: Path) -> None:
    foreign_tokenizer(kind).save(str(tmp_path / "tokenizer.json"))
    found = import_tokenizer(str(tmp_path / "tokenizer.json"), name="it", end_of_text="</s>")
    assert found.keeps_text == (kind in ("bpe", "sentencepiece"))
    assert found.adds_blank == (kind != "bpe")


# ---------------------------------------------------------------- special tokens and chats

CHAT = """{%- for m in messages %}
{%- if m.role not in ('user', 'assistant') %}{{ raise_exception('no such role') }}{% endif %}
<s>{{ m.role }}
{{ m.content | trim }}</s>
{% endfor %}{% if add_generation_prompt %}<s>assistant
{% endif %}"""


@pytest.fixture
def instruct(tmp_path: Path) -> Tokenizer:
    """A tokenizer that came with a chat template."""
    (tmp_path / "it").mkdir()
    foreign_tokenizer("bpe").save(str(tmp_path / "it" / "tokenizer.json"))
    (tmp_path / "it" / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<unk>", "eos_token": "</s>"}))
    (tmp_path / "it" / "chat_template.jinja").write_text(CHAT)
    return import_tokenizer(str(tmp_path / "it"), name="it")


def test_special_tokens_are_read_where_asked(instruct: Tokenizer, tmp_path: Path) -> None:
    run, _ = recited(instruct, "", [5], tmp_path)
    plain, special = run.encode_prompt("<s>hi"), run.encode_prompt("<s>hi", special=True)
    assert plain == [0, *instruct.encode("<s>hi")]
    assert special == [0, 1, *instruct.encode("hi")]
    assert run.encode_prompt("<unk>hi", special=True) == [0, *instruct.encode("hi")]  # not a separator twice


def test_a_chat_is_written_as_transformers_writes_it(
    instruct: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "it")
    turns = [{"role": "user", "content": " the girl <b> "}]
    expected = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert render_chat(instruct, turns) == expected
    run, _ = recited(instruct, "", [5], tmp_path)
    assert run.encode_prompt(" the girl <b> ", chat=True) == theirs(expected, add_special_tokens=False)["input_ids"]
    start = instruct.encode(expected, allow_special=True)
    ids = instruct.encode("there was")
    run.model = Reciter([*start, *ids], instruct.vocab_size)
    sampling = Sampling(max_new_tokens=len(ids), temperature=0, stop_at_end=False)
    _show_samples(run, [" the girl <b> "], sampling, show_tokens=False, chat=True)
    assert capsys.readouterr().out == " the girl <b> \nthere was\n"
    assert run.generate(" the girl <b> ", chat=True, sampling=sampling) == "there was"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no system turns') }}", "no system turns"),
        ("{% for m in messages %}", "gives no text: Unexpected end of template"),
        ("{{ messages.append(1) }}", "is unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "is unsafe"),
        ("{{ 1 / 0 }}", "division by zero"),
        (None, "has no chat template"),
    ],
)
def test_a_template_runs_in_a_sandbox_and_its_errors_are_one_line(
    instruct: Tokenizer, template: str | None, reason: str
) -> None:
    instruct.config["chat_template"] = template
    with pytest.raises(DataError, match=reason) as refused:
        render_chat(instruct, [{"role": "user", "content": "hi"}])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("system", ["256", "standard", None])
def test_tokens_can_be_told_apart_in_every_terminal(system: Literal["256", "standard"] | None) -> None:
    """By a colour each, which a terminal of 16 has too; by lines where there are none."""
    tokenizer = byte_tokenizer(special_tokens=["<|user|>"], name="marked")
    file = io.StringIO()
    screen = Console(file=file, force_terminal=system is not None, color_system=system, width=80)
    prompt, generated = tokenizer.encode("ab"), [*tokenizer.encode("cd"), tokenizer.special_tokens["<|user|>"]]
    screen.print(mark_tokens(screen, tokenizer, prompt, generated))
    shown = file.getvalue()
    if system is None:
        assert shown == "a│b║c│d│<|user|>\n"
    else:
        codes = re.findall(r"\x1b\[([\d;]+)m(?=[a-d<])", shown)
        assert len(codes) == 5
        assert all(one != other for one, other in itertools.pairwise(codes))
        assert [code.startswith("1;") for code in codes] == [True, True, False, False, True]
