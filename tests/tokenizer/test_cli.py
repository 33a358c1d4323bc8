from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gptlab.cli import main
from gptlab.tokenizer import load_tokenizer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("train", …)` → exit code, standard output, standard error of `gptlab tokenizer train …` in an
    empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    sentences = [
        f"The {a} {b} sat on the {c} mat.\n" for a in ("old", "red", "big") for b in ("cat", "dog") for c in "xyz"
    ]
    (tmp_path / "text.txt").write_text("".join(sentences) * 20, encoding="utf-8")

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["gptlab", "tokenizer", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        code = stopped.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    return command


def test_train_show_and_stats(run: Run) -> None:
    code, out, err = run("train", "--input", "text.txt", "--vocab-size", "280", "--name", "t", "--special", "<|u|>")
    assert (code, out) == (0, "")
    assert "wrote tokenizers/t: bpe, 280 ids" in err
    assert "gptlab data prepare --input 'text.txt' --validation-fraction 0.01 --tokenizer t" in err
    meta = json.loads(Path("tokenizers/t/meta.json").read_text(encoding="utf-8"))
    assert meta["trained_on"]["inputs"] == ["text.txt"]
    assert meta["trained_on"]["bytes"] == Path("text.txt").stat().st_size
    assert sorted(path.name for path in Path("tokenizers/t").iterdir()) == [
        "merges.txt",
        "meta.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]

    code, out, err = run("show", "t", "The cat\n é<|u|>")
    assert code == 0
    assert out.splitlines()[0].replace("│", "") == "The cat⏎"
    assert "\\xc3" in out
    assert "<|u|>" not in out
    code, out, err = run("show", "t", "cat<|u|>", "--allow-special", "--ids")
    assert code == 0
    assert "279" in out
    assert "<|u|>" in out

    code, out, err = run("stats", "t", "--input", "text.txt")
    assert code == 0
    tokens = load_tokenizer("t").encode(Path("text.txt").read_text(encoding="utf-8"))
    size = Path("text.txt").stat().st_size
    assert f"{len(tokens):,}" in out
    assert f"{size / len(tokens):.3f}" in out
    assert f"{len(set(range(278)) - set(tokens))} of 278 ordinary tokens" in out


def test_show_reads_special_tokens_as_it_is_told(run: Run) -> None:
    run("train", "--input", "text.txt", "--vocab-size", "280", "--name", "t", "--special", "<|u|>")
    text = "<|u|>a<|endoftext|>"
    for policy, first_lines in (("all", "<|u|>│a│<|endoftext|>"), ("none", "<│|│u│"), ("<|u|>", "<|u|>│a│<│|│")):
        code, out, _ = run("show", "t", text, "--special-tokens", policy)
        assert code == 0
        assert out.startswith(first_lines)
    code, _, err = run("show", "t", text, "--special-tokens", "raise")
    assert code == 2
    assert "--special-tokens all as the token" in err
    code, _, err = run("show", "t", text, "--special-tokens", "<|v|>")
    assert (code, "did you mean '<|u|>'" in err) == (2, True)


def test_nested_sizes_and_growing(run: Run) -> None:
    code, _, err = run("train", "--input", "text.txt", "--vocab-size", "280,0.27K,265", "--name", "n")
    assert code == 0, err
    assert sorted(path.name for path in Path("tokenizers").iterdir()) == ["n-265", "n-270", "n-280"]
    code, _, err = run("train", "--grow", "n-265", "--input", "text.txt", "--vocab-size", "280", "--name", "g")
    assert code == 0, err
    old, new = load_tokenizer("n-265"), load_tokenizer("g")
    assert new.token_bytes()[:265] == old.token_bytes()
    assert new.end_of_text == old.end_of_text == 264


def test_other_kinds_and_patterns(run: Run) -> None:
    assert run("train", "--kind", "byte", "--name", "b")[0] == 0
    assert run("train", "--kind", "char", "--input", "text.txt", "--name", "c", "--special", "<|u|>")[0] == 0
    assert load_tokenizer("c").special_tokens["<|u|>"] == load_tokenizer("c").vocab_size - 1
    options = ["--input", "text.txt", "--vocab-size", "270"]
    assert run("train", *options, "--pattern", "gpt2", "--name", "h")[0] == 0
    assert run("train", *options, "--pattern", r"\S+|\s", "--name", "r")[0] == 0
    assert load_tokenizer("r").pattern == r"\S+|\s"


def test_presets_and_invalid_text(run: Run) -> None:
    code, _, err = run("train", "--input", "stdlib", "--limit-bytes", "200K", "--vocab-size", "300", "--name", "code")
    assert code == 0, err
    assert load_tokenizer("code").trained_on["inputs"] == ["stdlib"]
    code, _, err = run("stats", "code", "--input", "stdlib", "--input", "text.txt")
    assert code == 2
    assert "give it alone" in err
    Path("bad.txt").write_bytes(b"fine until here \xff\xfe and fine after " * 9)
    options = ["--input", "bad.txt", "--errors"]
    assert run("train", "--kind", "char", "--name", "c", *options, "replace")[0] == 0
    assert load_tokenizer("c").encode("\ufffd")
    assert run("stats", "c", *options, "replace")[0] == 0
    assert run("stats", "c", *options, "ignore")[0] == 2


def test_import(run: Run) -> None:
    run("train", "--input", "text.txt", "--vocab-size", "280", "--name", "t")
    code, _, err = run("import", "tokenizers/t/tokenizer.json", "--name", "copy")
    assert (code, load_tokenizer("copy").hash) == (0, load_tokenizer("t").hash), err


def test_an_existing_tokenizer_needs_force(run: Run) -> None:
    options = ["train", "--input", "text.txt", "--name", "t", "--vocab-size"]
    assert run(*options, "270")[0] == 0
    code, _, err = run(*options, "280")
    assert code == 2
    assert "--force" in err
    assert load_tokenizer("t").vocab_size == 270
    assert run(*options, "280", "--force")[0] == 0
    assert load_tokenizer("t").vocab_size == 280
    code, _, err = run(*options, "100", "--force")
    assert code == 2
    assert load_tokenizer("t").vocab_size == 280


TRAIN = ("train", "--input", "text.txt", "--vocab-size", "300", "--name")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--input", "no.txt", "--vocab-size", "300", "--name", "t"), "no.txt"),
        (("train", "--input", "empty.txt", "--vocab-size", "300", "--name", "t"), "empty.txt"),
        (("train", "--input", "bad.txt", "--vocab-size", "300", "--name", "t"), "bad.txt"),
        (("train", "--input", "text.txt", "--vocab-size", "256", "--name", "t"), "too small"),
        (("train", "--input", "text.txt", "--vocab-size", "30K", "--name", "t"), "runs out of pairs"),
        (("train", "--input", "text.txt", "--vocab-size", "many", "--name", "t"), "'many' is not a number"),
        (("train", "--input", "text.txt", "--vocab-size", "300.5", "--name", "t"), "no whole number"),
        (("train", "--input", "text.txt", "--name", "t"), "needs --vocab-size"),
        (("train", "--vocab-size", "300", "--name", "t"), "needs --input"),
        ((*TRAIN, "../t"), "no path"),
        ((*TRAIN, "/t"), "no path"),
        ((*TRAIN, "byte"), "built-in"),
        ((*TRAIN, "t", "--kind", "bep"), "did you mean 'bpe'"),
        ((*TRAIN, "t", "--kind", "byte"), "--input means nothing with --kind byte"),
        ((*TRAIN, "t", "--kind", "char"), "--vocab-size means nothing"),
        ((*TRAIN, "t", "--pattern", "gpt9"), "--pattern gpt9 is neither a name"),
        ((*TRAIN, "t", "--grow", "nope"), "no tokenizer 'nope'"),
        ((*TRAIN, "t", "--grow", "byte"), "only bpe"),
        ((*TRAIN, "t", "--grow", "byte", "--pattern", "gpt2"), "--pattern means nothing with --grow"),
        ((*TRAIN, "t", "--limit-bytes", "0"), "--limit-bytes 0"),
        ((*TRAIN, "t", "--special", ""), "--special is empty"),
        (("show", "nope", "text"), "no tokenizer 'nope'"),
        (("stats", "byte"), "add --input"),
        (("import", "nowhere", "--name", "t"), "nowhere does not exist"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run: Run, arguments: tuple[str, ...], message: str) -> None:
    Path("empty.txt").write_bytes(b"")
    Path("bad.txt").write_bytes(b"fine until here \xff\xfe not UTF-8")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert err.splitlines()[-1] == errors[0]
    assert message in errors[0]
    assert not Path("tokenizers").exists()


def test_force_replaces_nothing_that_is_no_tokenizer(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tokenizers" / "mine").mkdir(parents=True)
    (tmp_path / "tokenizers" / "mine" / "notes.txt").write_text("mine")
    for force in ([], ["--force"]):
        code, _, err = run("train", "--kind", "byte", "--name", "mine", *force)
        assert code == 2
        assert "is no tokenizer, so --force does not replace it" in err
    assert (tmp_path / "tokenizers" / "mine" / "notes.txt").read_text() == "mine"
