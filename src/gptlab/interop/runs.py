"""From tensors of others to a run folder: what is common to every kind of import."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from gptlab.config import RunConfig, config_from, config_hash
from gptlab.console import console, say
from gptlab.errors import CheckpointError, DataError, option
from gptlab.files import atomic_folder
from gptlab.hardware.device import describe
from gptlab.interop.table import Architecture, Values, get
from gptlab.record import runfolder
from gptlab.systems.tensorfile import write_tensors
from gptlab.tokenizer import Tokenizer

Shape = tuple[int, ...]
_SHOWN = 40  # rows of the table of what does not fit
_LONGEST = 1 << 27  # positions of a context, more than any model has: angles are computed for all of them
_WINDOW = 1024  # tokens of a window of the loss task, where the model sees as many


def run_config(name: str, section: Values, rows: int, tokenizer: Tokenizer, where: str) -> RunConfig:
    """The config of a model with `rows` token ids, of which a tokenizer gives meaning to the first.

    Raises DataError where the tokenizer has more ids than the model, ConfigError where the sizes cannot work.
    """
    if tokenizer.vocab_size > rows:
        raise DataError(
            f"{where} has {rows} token ids and tokenizer {tokenizer.name} {tokenizer.vocab_size}; "
            f"name the tokenizer that the model was trained with: {option('tokenizer', 'NAME_OR_FOLDER')}"
        )
    length = min(section["context_length"], _WINDOW)
    padded = {**section, "pad_vocab": padding(tokenizer.vocab_size, rows)}
    return config_from({"name": name, "model": padded, "train": {"sequence_length": length, "batch_tokens": length}})


def padding(vocab_size: int, rows: int) -> int:
    """The `pad_vocab` that makes `rows` embedding rows of `vocab_size` ids: a power of two where one does."""
    powers = [2**n for n in range(13)]
    return next((n for n in powers if -(-vocab_size // n) * n == rows), rows)


def check_sizes(
    architecture: Architecture, section: Values, rows: Any, shapes: Mapping[str, Shape], where: str
) -> None:
    """Hold a config's sizes against the tensors that there are, before anything of these sizes is built.

    Raises CheckpointError for sizes that no tensor has: more layers than tensors, another width than the embedding's.
    """
    largest = max((math.prod(shape) for shape in shapes.values()), default=0)
    limits = {
        "layers": (section["layers"], len(shapes)),
        "heads": (section["heads"], largest),
        "token ids": (rows, largest),
        "units in a hidden layer": (get(section, "block.mlp.hidden"), largest),
        "positions": (section["context_length"], _LONGEST),
    }
    for what, (size, limit) in limits.items():
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= limit:
            raise CheckpointError(
                f"{where} says {str(size)[:40]} {what}, and its {len(shapes)} tensors leave room for 1 to {limit:,}; "
                "get the config and the weights of one model"
            )
    table = next(theirs[0] for ours, theirs, _, _ in architecture.names(section) if ours == "embedding.weight")
    have = next((shape for name, shape in shapes.items() if architecture.canonical_name(name) == table), ())
    if len(have) == 2 and section["dim"] != have[1]:
        raise CheckpointError(
            f"{where} says a width of {str(section['dim'])[:40]}, and {table} is {_shape(have)}; get the config and "
            "the weights of one model"
        )


def check_tensors(
    architecture: Architecture, model: nn.Module, section: Values, shapes: Mapping[str, Shape], where: str
) -> None:
    """Account for every tensor. `shapes`: what there is, by the architecture's full names.

    Prints a table of what does not fit and raises CheckpointError where anything is missing, too much, or of another
    shape.
    """
    wanted = expected_shapes(architecture, model, section)
    odd = [(name, wanted.get(name), shapes.get(name)) for name in sorted({*wanted, *shapes})]
    odd = [row for row in odd if row[1] != row[2]]
    if not odd:
        return
    table = Table("tensor", "config.json asks for", "the file has", box=None, pad_edge=False, header_style="bold")
    for name, want, have in odd[:_SHOWN]:
        table.add_row(name, _shape(want), _shape(have))
    console().print(table)
    if len(odd) > _SHOWN:
        say(f"… and {len(odd) - _SHOWN} more")
    name, want, have = odd[0]
    what = "is missing" if have is None else "is too much" if want is None else f"is {_shape(have)}, not {_shape(want)}"
    others = "" if len(odd) == 1 else f" (and {len(odd) - 1} more do not fit, listed above)"
    raise CheckpointError(f"{where}: tensor {name} {what}{others}; get the config and the weights of one model")


def expected_shapes(architecture: Architecture, model: nn.Module, section: Values) -> dict[str, Shape]:
    """The shape of every tensor under the architecture's names; `model` may be on the meta device."""
    own = dict(model.named_parameters())
    named = {ours: (theirs, row) for ours, theirs, row, _ in architecture.names(section)}
    if set(named) != set(own):
        missing = sorted(set(named) ^ set(own))[0]
        raise AssertionError(f"the table of {architecture.name} and its model do not agree on {missing}")
    found: dict[str, Shape] = {}
    for ours, (theirs, row) in named.items():
        shape = tuple(own[ours].shape)
        for name, rows in zip(theirs, row_counts(shape[0], len(theirs), model), strict=True):
            cut = (rows * row.part[1], *shape[1:])
            found[name] = cut[::-1] if row.turned else cut
    return found


def row_counts(rows: int, parts: int, model: nn.Module) -> tuple[int, ...]:
    """How many rows of ours each of `parts` tensors holds: all, or those of queries, keys and values."""
    if parts == 1:
        return (rows,)
    attention = model.blocks[0].attention
    width = attention.head_dim
    return attention.heads * width, attention.kv_heads * width, attention.kv_heads * width


def convert_tensors(architecture: Architecture, section: Values, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names in float32, from ones under the architecture's full names (read one at a time)."""
    found = {}
    for ours, theirs, row, _ in architecture.names(section):
        parts = [tensors[name] for name in theirs]
        for name, part in zip(theirs, parts, strict=True):
            if not part.is_floating_point():
                raise CheckpointError(f"tensor {name} holds {part.dtype}; quantized weights cannot be imported")
        joined = torch.cat([part.float() for part in parts]) if len(parts) > 1 else parts[0].float()
        index, count = row.part
        joined = joined.chunk(count)[index] + row.more if row.more else joined.chunk(count)[index]
        found[ours] = (joined.t() if row.turned and joined.ndim == 2 else joined).contiguous()
    return found


class NamedTensors(Mapping[str, Tensor]):
    """Tensors of others under an architecture's full names, without what is no parameter.

    `shapes` are theirs, by their names. Raises CheckpointError where two have one name, or where a head is dropped as
    a copy of the embedding and is none.
    """

    def __init__(self, architecture: Architecture, tensors: Any, shapes: Mapping[str, Shape], *, tied: bool) -> None:
        self._tensors, self._names = tensors, dict[str, str]()
        for name in shapes:
            full = architecture.canonical_name(name)
            if not architecture.ignored.fullmatch(full):
                if full in self._names:
                    raise CheckpointError(f"tensors {name} and {self._names[full]} are one by name; remove one")
                self._names[full] = name
        if tied and "lm_head.weight" in self._names:
            self._drop_head(architecture)
        self.shapes = {full: shapes[name] for full, name in self._names.items()}

    def _drop_head(self, architecture: Architecture) -> None:
        """Some files hold the tied matrix twice; a head of its own would be lost."""
        one_matrix = {"layers": 0, "tied": True}
        table = next(theirs[0] for ours, theirs, _, _ in architecture.names(one_matrix) if ours == "embedding.weight")
        if table in self._names and not torch.equal(self["lm_head.weight"], self[table]):
            raise CheckpointError(
                "the config ties the head to the embedding (tie_word_embeddings), and lm_head.weight is another "
                "matrix than the embedding; correct the config"
            )
        del self._names["lm_head.weight"]

    def __getitem__(self, full: str) -> Tensor:
        tensor: Tensor = self._tensors[self._names[full]]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the name `folder` when all is written, and disappears on any error.

    Raises CheckpointError where `folder` holds something already or the disk refuses.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"{folder} holds something already; name another {option('out', argument='folder')}, or empty it"
        )
    try:
        with atomic_folder(folder) as aside:
            yield aside
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror or error}; free some space") from None


def write_run(
    name: str,
    config: RunConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    source: Values,
    runs: Path,
    beside: Mapping[str, bytes] | None = None,
) -> Path:
    """Make `runs`/NAME-HASH in one atomic step. HASH stands for weights, model and tokenizer; env.json keeps `source`.
    `beside`: files of the source that an export gives back, by name.

    Raises CheckpointError where it is there already or the disk refuses.
    """
    folder = runs / f"{name}-{_digest(config, tensors, tokenizer)}"
    if folder.exists():
        raise CheckpointError(f"{folder} exists already, with these very weights; use it, or delete it first")
    session = runfolder.session_record(config_hash(config, {}), config, describe(torch.device("cpu")), 1)
    with new_folder(folder) as aside:
        save_tensors(tensors, aside / "model.safetensors")
        session = {**session, "weights": runfolder.digest_of_weights(aside), "imported": source}
        runfolder.write_run_folder(aside, config, session)
        tokenizer.save(aside / "tokenizer")
        for file, content in (beside or {}).items():
            (aside / file).write_bytes(content)
        runfolder.log_line(aside, f"imported from {source['from']}")
    if (beyond := len(tensors["embedding.weight"]) - tokenizer.vocab_size) > 0:
        say(f"{beyond} token ids beyond the tokenizer's {tokenizer.vocab_size} are kept and never predicted")
    return folder


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that others may read. Raises OSError where the disk refuses."""
    write_tensors(tensors, path)


def _digest(config: RunConfig, tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> str:
    """Eight hex digits of SHA-256 over what was imported."""
    digest = hashlib.sha256(f"{config_hash(config, {})} {tokenizer.hash}".encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()[:8]


def _shape(shape: Shape | None) -> str:
    return "—" if shape is None else "×".join(map(str, shape))


def import_record(source: Path | str, files: list[Path], **more: Any) -> Values:
    """What env.json keeps of an import."""
    from gptlab.files import sha256_file

    return {"from": str(source), "sha256": {file.name: sha256_file(file) for file in files}, **more}
