"""Options that several commands share, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from gptlab.console import say
from gptlab.errors import ConfigError, DataError, GptlabError, did_you_mean
from gptlab.files import check_place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gptlab.config import RunConfig
    from gptlab.lab.experiment.metric import Metric


def complete_config(incomplete: str) -> list[str]:
    """What a shell proposes for a config: names that come with gptlab, files here, and runs."""
    from gptlab.config.preset import presets

    files = [*Path().glob("*.yaml"), *Path("experiments").glob("*/*.yaml"), *Path("runs").glob("[!.]*")]
    return [name for name in [*presets(), *map(str, files)] if name.startswith(incomplete)]


def complete_experiment(incomplete: str) -> list[str]:
    """What a shell proposes for an experiment's folder: those in experiments/, and those here."""
    statements = [*Path("experiments").glob("*/experiment.yaml"), *Path().glob("*/experiment.yaml")]
    return sorted(folder for path in statements if (folder := str(path.parent)).startswith(incomplete))


def complete_setting(incomplete: str) -> list[str]:
    """What a shell proposes for `--set`: the keys of a config, as far as its next dot."""
    from gptlab.config import config_from

    def keys(values: object, above: str = "") -> Iterator[str]:
        for key, value in values.items() if isinstance(values, dict) and values else ():
            yield from keys(value, f"{above}{key}.") if isinstance(value, dict) and value else [f"{above}{key}="]

    return [key for key in keys(config_from({}).plain()) if key.startswith(incomplete)]


Config = Annotated[
    str,
    typer.Argument(help="a YAML file, a run folder, or a name of `gptlab config list`", autocompletion=complete_config),
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="change a value; repeatable", autocompletion=complete_setting),
]
OneStage = Annotated[str | None, typer.Option("--stage", help="of a config of stages: which; by default the first")]
ExperimentFolder = Annotated[
    Path,
    typer.Argument(help="an experiment's folder, which holds experiment.yaml", autocompletion=complete_experiment),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")]
Checkpoint = Annotated[
    str | None, typer.Option(help="best, last or a folder of RUN/checkpoints; by default the final weights")
]
Quantize = Annotated[str | None, typer.Option(help="int8: keep the weights in int8, by torchao", show_default=False)]
Compile = Annotated[
    bool, typer.Option("--compile", help="compile the step of a token first: a minute, then faster (on a CPU)")
]
SpecialTokens = Annotated[
    list[str] | None,
    typer.Option(
        metavar="all|none|raise|TOKEN",
        help="special tokens in the text: all are read as such, none is, they are refused, or TOKEN is; repeatable",
        show_default="none",
    ),
]
TextFile = Annotated[
    list[Path] | None, typer.Option("--file", help="a file of text, UTF-8; repeatable", show_default=False)
]
Scale = Annotated[
    float | None,
    typer.Option(help="a small trial: this share of the tokens; batch and sequence shrink too", show_default=False),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask before training")]
Prepare = Annotated[
    bool, typer.Option("--prepare", help="prepare the data too where they are a preset's; asked in a terminal")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show the plan and train nothing")]
Jobs = Annotated[int | None, typer.Option(min=1, help="runs at once; by default one on every GPU, or one on the CPU")]
Probe = Annotated[bool, typer.Option(help="measure speed before asking")]
MetricName = Annotated[str, typer.Option("--metric", help="loss or bits_per_byte")]


_MAY_BE_EMPTY = {"prompts", "text", "separator", "widths"}


class NothingEmpty(TyperCommand):
    """A command that refuses an empty value, such as `--out "$OUT"` gives where OUT is not set: a path would be the
    folder that one is in."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Raises GptlabError naming the option."""
        raw, _, order = self.make_parser(ctx).parse_args(args=[*args])
        for parameter in order:
            given = raw.get(parameter.name)
            empty = "" in given if isinstance(given, list | tuple) else given == ""
            if empty and parameter.name not in _MAY_BE_EMPTY:
                name = parameter.opts[-1] if parameter.param_type_name == "option" else str(parameter.name).upper()
                raise GptlabError(f"{name} is empty; give it a value, or leave it out")
        return super().parse_args(ctx, args)


def read_texts(words: Sequence[str], files: Sequence[Path] | None) -> list[str]:
    """Texts as they were typed, `-` for what is on standard input, then those of `files`.

    A text that is the name of a file is taken as it is, which is said. Raises DataError for a file that is missing or
    not UTF-8, and for standard input that is closed.
    """
    texts = [_read_text(Path("-")) if word == "-" else word for word in words]
    for word in words:
        if word != "-" and len(word) < 256 and "\0" not in word and Path(word).is_file():
            say(f"{word!r} is taken as the text itself; --file {word} reads the file")
    return [*texts, *(_read_text(file) for file in files or ())]


def _read_text(file: Path) -> str:
    import sys

    where = "standard input" if str(file) == "-" else str(file)
    try:
        if str(file) != "-":
            return file.read_bytes().decode("utf-8")
        if sys.stdin is None:
            raise DataError("standard input is closed, and - reads it; give the text itself")
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8: byte {error.start:,}; convert it first") from None
    except OSError as error:
        raise DataError(f"--file {where} cannot be read: {error.strerror or error}; check the path") from None


def apply_scale(source: str, overrides: list[str], scale: float | None) -> list[str]:
    """`overrides`, after what `--scale` changes in the config."""
    from gptlab.config import has_stages, load_config
    from gptlab.config.scale import scale_overrides

    if scale is None:
        return overrides
    if has_stages(source):
        raise ConfigError(f"--scale is for a single run, and {source} has stages; set their lengths by --set")
    if (Path(source) / "config.yaml").is_file():
        raise ConfigError(f"--scale changes a config, and {source} is a run that has its own; name its config instead")
    return scale_overrides(load_config(source, overrides), scale, overrides)


def load_one(source: str, overrides: Sequence[str], stage: str | None) -> RunConfig:
    """The config of one run; of stages that of `stage`, or of the first, which is said."""
    from gptlab.config import has_stages, load_stage

    loaded = load_stage(source, overrides, stage)
    if stage is None and has_stages(source):
        say(f"taking the first stage, {loaded.name} (--stage names another)")
    return loaded


def load_single(source: str, overrides: Sequence[str]) -> RunConfig:
    """The config; one of stages is refused."""
    from gptlab.config import has_stages, load_config

    if has_stages(source):
        raise ConfigError(f"{source}: `stages` make several runs; name a config of a single one")
    return load_config(source, overrides)


GPT2_VOCABULARY = 50257


def vocabulary_of(source: str, config: RunConfig) -> int:
    """V of the run folder that `source` names, else of the config's data where it is here, else of its tokenizer, else
    GPT-2's, which is said."""
    from gptlab.data import MANIFEST, Manifest
    from gptlab.tokenizer import load_tokenizer

    own = Path(source) / "tokenizer"
    if (own / "meta.json").is_file():
        return load_tokenizer(own).vocab_size
    folders = [*filter(None, [config.data.path]), *(config.data.sources or {}).values()]
    for folder in folders:
        if (Path(folder) / MANIFEST).is_file():
            return Manifest.load(Path(folder)).vocab_size
    if config.data.tokenizer:
        return load_tokenizer(config.data.tokenizer).vocab_size
    where = f"at {folders[0]}" if folders else "named"
    say(f"no data set {where}; taking V = {GPT2_VOCABULARY} (--vocab-size sets another)")
    return GPT2_VOCABULARY


def read_metric(name: str) -> Metric:
    from gptlab.lab.experiment.metric import Metric

    if name not in ("loss", "bits_per_byte"):
        raise GptlabError(f"--metric {name}: not one of these; {did_you_mean(name, ['loss', 'bits_per_byte'])}")
    return Metric.model_validate(name)


def check_picture(path: Path | None) -> None:
    """Refuse, before anything is trained, a place where no picture can be written in the end."""
    if path is None:
        return
    if path.is_dir():
        raise GptlabError(f"--out {path}: this is a folder; name a file, such as {path / 'picture.png'}")
    if path.suffix != ".png":
        raise GptlabError(f"--out {path}: pictures are PNG; name a file that ends in .png")
    check_place(path, "--out")


def check_folder(path: Path | None, option: str) -> None:
    """Refuse, before any work, a place where no folder can be made in the end."""
    if path is None:
        return
    check_place(path, option)
    if path.exists() and not path.is_dir():
        raise GptlabError(f"{option} {path}: this is a file; name a folder")


def parse_count(text: str | None, option: str, *, least: int | None = None) -> int | None:
    """A count such as 100M, given to `option`. Raises ConfigError for what is no whole number, or below `least`."""
    from gptlab.config.numbers import parse_number

    if text is None:
        return None
    try:
        value = parse_number(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None
    if not isinstance(value, int):
        raise ConfigError(f"{option} {text}: must be a whole number")
    if least is not None and value < least:
        raise ConfigError(f"{option} {text}: must be at least {least}")
    return value


def check_errors(given: str) -> None:
    """Raise ConfigError where `--errors` is neither strict nor replace."""
    if given not in ("strict", "replace"):
        raise ConfigError(f"--errors {given}: {did_you_mean(given, ['strict', 'replace'])}")
