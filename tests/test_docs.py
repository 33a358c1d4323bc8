"""The documents say what the code does: links, commands, options, configs, code and error messages are checked."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from helpers import TINY, make_data, only_run

import gptlab
from gptlab.cli import main
from gptlab.config import RunConfig, config_from, load_config, presets
from gptlab.loss import CrossEntropy, TokenBatch
from gptlab.model import build_model

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS = [*FRONT, *PAGES]
FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.M | re.S)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name)


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """docs/hooks.py, as mkdocs loads it."""
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Fence(NamedTuple):
    """A fenced code block."""

    language: str
    title: str
    text: str


def fences(document: Path) -> list[Fence]:
    found = []
    for match in FENCE.finditer(document.read_text(encoding="utf-8")):
        title = re.search(r'title="([^"]+)"', match[3])
        found.append(Fence(match[2], title[1] if title else "", match[4]))
    return found


# ---------------------------------------------------------------- links and pages


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and mkdocs make it for plain ones."""
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower()))


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{name(document)} links to {target}"
        assert file.is_relative_to(DOCS if document in PAGES else ROOT), f"{name(document)} links out to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            assert anchor in map(slug, headings), f"{name(document)} links to {target}"


def test_every_page_is_in_the_menu() -> None:
    def files(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry.values() if isinstance(entry, dict) else entry:
                yield from files(part)

    listed = list(files(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_every_decision_is_in_its_index() -> None:
    index = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    for page in (DOCS / "decisions").glob("0*.md"):
        title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").partition(" ")[2]
        assert f"]({page.name}) | {title}" in index


@pytest.mark.slow
def test_the_manual_builds_without_warnings(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ReLU2" in (tmp_path / "components" / "mlp" / "index.html").read_text(encoding="utf-8")


# ---------------------------------------------------------------- what is generated


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_directives_expand(hooks: ModuleType, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^\{\{", hooks.expand(text), re.M)


@pytest.mark.parametrize("text", ["{{ slots mlp }}", "{{ command trian }}", "{{ command data prepair }}"])
def test_a_directive_for_what_does_not_exist_stops_the_build(hooks: ModuleType, text: str) -> None:
    with pytest.raises(ValueError, match=r"no directive|no command"):
        hooks.expand(text)


def test_generated_tables_hold_the_defaults(hooks: ModuleType) -> None:
    assert "| `kv_heads` | `int \\| None` | `null` |" in hooks.expand("{{ slot attention }}")
    assert "| `betas` | `tuple[float, float]` | `[0.9, 0.95]` |" in hooks.expand("{{ component optimizer AdamW }}")
    assert "| `--temperature` | 0 takes the likeliest token | `0.8` |" in hooks.expand("{{ command sample }}")
    assert "| `train.bad_step` | stop or skip | `stop` |" in hooks.expand("{{ schema }}")


def test_every_command_and_every_slot_has_its_place(hooks: ModuleType) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for path, _ in leaves(hooks.command_tree()):
        assert f"{{{{ command {' '.join(path)} }}}}" in text
    for kind in hooks.SLOTS:
        assert (DOCS / "components" / f"{kind}.md").is_file()


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, by the words that call it."""
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
    for word, child in (children or {}).items():
        yield from leaves(child, (*path, word))


# ---------------------------------------------------------------- commands


class Call(NamedTuple):
    """A call of gptlab in a document: the words after `gptlab`, and whether it is shown to fail."""

    words: list[str]
    fails: bool


def calls(document: Path) -> list[Call]:
    """Every `gptlab …` and `python -m gptlab …` in the shell blocks of a document."""
    found = []
    for fence in fences(document):
        if fence.language not in ("sh", "console", "bash", ""):
            continue
        for line in fence.text.replace("\\\n", " ").splitlines():
            shown = line.strip().removeprefix("$ ")
            if fence.language == "console" and shown == line.strip():
                continue  # what a command printed
            if "gptlab" not in shown:
                continue
            words = shlex.split(shown, comments=True)
            starts = [i for i, word in enumerate(words) if word.removeprefix(".venv/bin/") == "gptlab"]
            if starts and words[0] != "pip":
                found.append(Call(words[starts[0] + 1 :], "\nerror: " in fence.text))
    return found


@every_document
def test_commands_and_options_exist(hooks: ModuleType, document: Path) -> None:
    for call in calls(document):
        shown = f"{name(document)}: gptlab {shlex.join(call.words)}"
        command, words = hooks.command_tree(), list(call.words)
        while (children := getattr(command, "commands", None)) is not None:
            assert words, f"{shown}: names no command"
            if words[0] not in children and hasattr(command, "fallback"):
                words.insert(0, command.fallback)
            assert words[0] in children, f"{shown}: no command {words[0]!r}"
            command = children[words.pop(0)]
        options = {option: p for p in command.params for option in (*p.opts, *p.secondary_opts)}
        given, given_options, settings = [], set(), []
        while words:
            word = words.pop(0)
            if not word.startswith("--"):
                given.append(word)
                continue
            option, equals, value = word.partition("=")
            if option in ("--help", ">"):
                continue
            assert option in options, f"{shown}: no option {option}"
            given_options.add(options[option].name)
            if not getattr(options[option], "is_flag", False) and not equals:
                assert words, f"{shown}: {option} wants a value"
                value = words.pop(0)
            if option == "--set":
                settings.append(value)
        if ">" in given:
            given = given[: given.index(">")]
        if call.fails:
            continue
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        many = any(p.nargs == -1 for p in arguments)
        assert len(given) >= sum(bool(p.required) for p in arguments), f"{shown}: too few arguments"
        assert many or len(given) <= len(arguments), f"{shown}: too many arguments"
        for p in command.params:
            if p.param_type_name == "option" and p.required:
                assert p.name in given_options, f"{shown}: {p.name} is required"
        if settings:
            _ = load_config(given[0], settings) if given[0] in presets() else config_from({}, settings)


@every_document
def test_configs_that_are_named_exist(document: Path) -> None:
    """Where a command of the text takes a config, and in `base: gptlab:NAME`."""
    text = document.read_text(encoding="utf-8")
    takes = r"gptlab (?:train|trace|plan|noise|ladder|sweep|lr-find|mup check|config (?:show|copy|diff))"
    for named in [
        *re.findall(rf"{takes} (\w[\w.-]*)(?=[\s`#]|$)", text, re.M),
        *re.findall(r"gptlab:([a-z][\w.-]*)", text),
    ]:
        assert named in presets() or named.endswith(".yaml") or named.isupper(), f"{name(document)} names {named}"


@every_document
def test_make_targets_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for fence in fences(document):
        if fence.language == "sh":
            for target in re.findall(r"^make (\w+)", fence.text, re.M):
                assert re.search(rf"^{target}:", makefile, re.M), f"{name(document)} says make {target}"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_the_test_command_is_the_one_of_make(document: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^test:[^\n]*\n\t\$\(BIN\)/(.+)$", makefile, re.M)
    assert recipe is not None
    assert f".venv/bin/{recipe[1]}" in (ROOT / document).read_text(encoding="utf-8")


# ---------------------------------------------------------------- code and configs in the text


@every_document
def test_python_blocks_name_what_exists(document: Path) -> None:
    for called in re.findall(r"\bgptlab\.(\w+)\(", document.read_text(encoding="utf-8")):
        assert hasattr(gptlab, called), f"{name(document)}: gptlab.{called}"
    for fence in fences(document):
        if fence.language != "python":
            continue
        tree = ast.parse(fence.text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "gptlab":
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{name(document)}: from {node.module} import {alias.name}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gptlab":
                assert hasattr(gptlab, node.attr), f"{name(document)}: gptlab.{node.attr}"


@every_document
def test_yaml_blocks_are_configs(document: Path, tmp_path: Path) -> None:
    beside = {fence.title: fence.text for fence in fences(document) if fence.title}
    for title, text in beside.items():
        (tmp_path / title).write_text(text)
    for fence in fences(document):
        if fence.language == "yaml" and set(yaml.safe_load(fence.text)) <= {*RunConfig.model_fields, "base"}:
            (tmp_path / "block.yaml").write_text(fence.text)
            load_config(tmp_path / "block.yaml")


def test_the_example_of_a_component_trains(tmp_path: Path) -> None:
    for fence in fences(DOCS / "components" / "index.md"):
        if fence.title:
            (tmp_path / fence.title).write_text(fence.text)
    model = build_model(load_config(tmp_path / "geglu.yaml"), 97)
    assert type(model.blocks[0].mlp).__name__ == "GEGLU"
    ids = torch.randint(97, (2, 33))
    out = CrossEntropy()(model, TokenBatch(ids[:, :-1], ids[:, 1:], torch.zeros_like(ids[:, 1:])))
    out.sum.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.blocks[0].mlp.gate.weight.grad.abs().sum() > 0


# ---------------------------------------------------------------- error messages


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the page on troubleshooting speaks of: a small config, its data, and a finished run."""
    folder = tmp_path_factory.mktemp("troubles")
    make_data(folder)
    (folder / "tiny.yaml").write_text(f"data: {{path: data}}{TINY}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        gptlab.train(load_config("tiny.yaml"))
    return folder


FAILURES = [
    fence.text.strip().split("\n", 1)
    for fence in fences(DOCS / "troubleshooting.md")
    if fence.language == "console" and "\nerror: " in fence.text
]


@pytest.mark.parametrize(("command", "message"), FAILURES, ids=[command for command, _ in FAILURES])
def test_error_messages_are_the_real_ones(
    playground: Path, command: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = only_run(playground).name
    monkeypatch.chdir(playground)
    monkeypatch.setattr(sys, "argv", shlex.split(command.removeprefix("$ ").replace("tiny-HASH-seed1", run)))
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == message.replace("tiny-HASH-seed1", run)
    assert [path.name for path in (playground / "runs").iterdir()] == [run]


def test_there_are_messages_to_check() -> None:
    assert len(FAILURES) >= 10


# ---------------------------------------------------------------- versions


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == gptlab.__version__
    assert f"## [{gptlab.__version__}] - {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text()
    assert f'version = "{gptlab.__version__}"' in (ROOT / "pyproject.toml").read_text()
