"""A trained run, ready to use: `run = gptlab.load("runs/…")`, then `run.generate([...])`, `run.loss(text)`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import nn

from gptlab.config import RunConfig, weights_digest
from gptlab.console import say, waiting
from gptlab.data import IGNORE, Batch
from gptlab.errors import CheckpointError, ConfigError, DataError, GptlabError, option
from gptlab.hardware.allocator import keep_freed_memory
from gptlab.hardware.device import pick_device
from gptlab.hardware.precision import pick_dtype
from gptlab.inference.chat import render_chat
from gptlab.inference.generate import Sampling, decoding_copy, generate
from gptlab.inference.inspection import Tensors, TokenLosses, read_attention, read_losses, read_tensors
from gptlab.inference.quantization import check_kind, is_quantized
from gptlab.inference.quantization import quantize as quantize_model
from gptlab.inference.scoring import LossResult, TokenSizes, evaluate_loss
from gptlab.model import build_model
from gptlab.parallel import World
from gptlab.record import runfolder
from gptlab.record.facts import read_facts
from gptlab.record.runfolder import read_config
from gptlab.shown import Sheet, Shown
from gptlab.systems.checkpoint import Checkpoints, checkpoint_step, load_tensors
from gptlab.systems.tensorfile import write_tensors
from gptlab.tokenizer import SpecialPolicy, Tokenizer, load_tokenizer


@dataclass(repr=False)
class Run(Shown):
    """A model with its tokenizer and config, and what was measured of it."""

    folder: Path
    config: RunConfig
    model: nn.Module
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype
    step: int | None = None  # the training step of the weights; None where it is not known
    final: bool = False  # whether these are the weights in model.safetensors
    quantized: str | None = None  # what its matrices are kept in; None: as they were trained

    def sheet(self) -> Sheet:
        """What it is, how far it was trained and to what loss: a line each."""
        size = sum(parameter.numel() for parameter in self.model.parameters())
        steps = f"{self.config.total_steps:,} steps of {self.config.train.batch_tokens:,} tokens"
        where = f"{self.device} in {str(self.dtype).removeprefix('torch.')}"
        if self.quantized is not None:
            where += f", {self.quantized} weights"
        rows = [
            (
                "model",
                f"{type(self.model).__name__}, {size:,} parameters, {self.model.context_length:,} tokens of context",
            ),
            ("tokenizer", f"{self.tokenizer.name}, {self.tokenizer.vocab_size:,} ids"),
            ("trained", "elsewhere" if self.step is None else f"{self.step:,} of {steps}"),
            *self._validation(),
            ("on", where),
        ]
        return Sheet(f"run {self.folder}", rows)

    def _validation(self) -> list[tuple[str, str]]:
        """The last validation in the log; none where it has none, or cannot be read."""
        with contextlib.suppress(GptlabError):
            row = next((row for row in reversed(self.metrics) if "val/loss" in row), None)
            if row is not None:
                bits = row.get("val/bits_per_byte")
                by_byte = "" if bits is None else f", {bits:.4f} bits per byte"
                return [("validation", f"loss {row['val/loss']:.4f} nats a token at step {row['step']:,}{by_byte}")]
        return []

    @property
    def weights(self) -> str | None:
        """16 digits of SHA-256 of model.safetensors; None for weights from elsewhere."""
        return runfolder.digest_of_weights(self.folder) if self.final else None

    @functools.cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        from gptlab.record.metrics import read_metrics

        return read_metrics(self.folder / "metrics.jsonl")

    @property
    def finished(self) -> bool:
        """Whether training reached its last step and nothing of it is missing (`gptlab.record.runfolder.state`)."""
        return runfolder.state(self.folder) in (runfolder.State.FINISHED, runfolder.State.RECONFIGURED)

    @functools.cached_property
    def generator(self) -> nn.Module:
        """The model laid out for generation; made when it is first asked for."""
        return decoding_copy(self.model, self.device, self.dtype)

    def compile_generator(self, texts: Sequence[Sequence[int]] = ((0,),), *, joining: bool = False) -> None:
        """Let `generator` be compiled for adding a token to so many texts at once, as
        `gptlab.inference.compiled.warm_up` takes them: half a minute to a minute once, and nearly twice the speed for
        one text. Raises GptlabError off the CPU, for quantized weights, and where torch.compile fails."""
        from gptlab.inference.compiled import CompiledSteps, check_compiles, warm_up

        check_compiles(self.device, self.quantized)
        if not isinstance(self.generator, CompiledSteps):
            self.generator = CompiledSteps(self.model)
        with waiting(f"{self.folder.name}: compiling the step of a token"):
            warm_up(self.generator, texts, joining=joining)

    @overload
    def generate(self, prompts: str, **options: Any) -> str: ...

    @overload
    def generate(self, prompts: Sequence[str], **options: Any) -> list[str]: ...

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        special: SpecialPolicy = False,
        chat: bool = False,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> str | list[str]:
        """The continuation of a prompt, without the prompt; of several prompts a list of them. `options` are the fields
        of `Sampling`; `special` and `chat` as of `encode_prompt`."""
        chosen = sampling or Sampling(**options)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        ids = [self.encode_prompt(text, special=special, chat=chat) for text in texts]
        found = generate(self.generator, ids, chosen, stop_ids=self.tokenizer.stop_ids, device=self.device)
        continued = [
            self.tokenizer.decode_continuation(row, begins=chat or not text)
            for text, row in zip(texts, found, strict=True)
        ]
        return continued[0] if isinstance(prompts, str) else continued

    def encode_prompt(self, text: str, *, special: SpecialPolicy = False, chat: bool = False) -> list[int]:
        """The ids of a prompt. A separator stands before it, as before every document in training.

        `special`: which special tokens in the text are read as such (`SpecialPolicy` of `gptlab.tokenizer.core`); a
            separator that it begins with is not put twice.
        `chat`: the text is what a user says to an instruct model; its tokenizer's template says how that is written.
        Raises DataError where the tokenizer has no such template.
        """
        if chat:
            return self.tokenizer.encode(
                render_chat(self.tokenizer, [{"role": "user", "content": text}]), allow_special=True
            )
        ids = self.tokenizer.encode(text, allow_special=special)
        start = self.tokenizer.end_of_text
        return ids if special and ids[:1] == [start] else [start, *ids]

    def tensors(self, text: str) -> Tensors:
        """Every tensor of a forward pass over `text`: shape, mean, standard deviation, largest magnitude."""
        return read_tensors(self.model, self.encode_prompt(text))

    def attention(self, text: str) -> torch.Tensor:
        """Who attends to whom in `text`, whose first token is the separator before it: (L, H, T, T), rows sum to 1."""
        return read_attention(self.model, self.encode_prompt(text))

    def token_losses(self, text: str) -> TokenLosses:
        """What each token of `text`, one document, costs: −log p given those before it, nats."""
        return read_losses(self.model, self.tokenizer, self.encode_prompt(text))

    def loss(self, text: str) -> LossResult:
        """Loss on `text` as one document: `.loss` in nats a token, `.perplexity`, `.bits_per_byte`."""
        ids = np.array(self.encode_prompt(text), dtype=np.int64)
        ordinary = torch.ones(self.tokenizer.vocab_size)
        ordinary[[i for i in self.tokenizer.special_tokens.values() if i == self.tokenizer.end_of_text]] = 0
        found = evaluate_loss(
            self.model,
            _windows(ids, self.model.context_length),
            sizes=TokenSizes(ordinary),
            device=self.device,
            dtype=self.dtype,
        )
        return dataclasses.replace(found, bytes=len(text.encode("utf-8")))  # of the text itself: it is here


def load(
    folder: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    checkpoint: str | None = None,
    quantize: str | None = None,
) -> Run:
    """A run from its folder: the final weights, or the newest whole checkpoint of an unfinished one.

    `dtype`: precision of losses and evaluations; auto is that of the training. `checkpoint`: what to load instead: the
    name of a folder in `checkpoints/`, `last`, or `best` (by validation loss, of those that are there). `quantize`:
    "int8" keeps the matrices so, to be read and not to be saved (`gptlab.inference.quantization`); None: as they are.
    Raises GptlabError where there is nothing to load or it is damaged. What others have trained loads with
    `gptlab.interop.load`.
    """
    folder = Path(folder)
    runfolder.require_run(folder)
    config = read_config(folder)
    if quantize is not None:
        check_kind(quantize)
    with waiting(f"loading {folder}"):
        tokenizer = load_tokenizer(folder / "tokenizer")
        model = build_model(config, tokenizer.vocab_size)
        step = _load_weights(folder, model, checkpoint)
        final = step is None
        if final and (folder / "metrics.jsonl").is_file():  # imported weights have no steps behind them
            step = read_facts(folder).steps if (folder / runfolder.FACTS).is_file() else config.total_steps
        run = make_run(folder, config, model, tokenizer, device=device, dtype=dtype, step=step, quantize=quantize)
    run.final = final
    return run


def make_run(
    folder: Path,
    config: RunConfig,
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    device: str = "auto",
    dtype: str = "auto",
    step: int | None = None,
    quantize: str | None = None,
) -> Run:
    """The run made of these parts, its model moved to `device` and ready to be used. Arguments as of `load`."""
    where = pick_device(device)
    if where.type == "cpu":
        keep_freed_memory()
    asked = config.train.dtype if dtype == "auto" else dtype
    model = model.to(where).eval()
    if quantize is not None:
        quantize_model(model, quantize)
    return Run(folder, config, model, tokenizer, where, pick_dtype(asked, where), step, quantized=quantize)


def save_weights(weights: nn.Module | Mapping[str, torch.Tensor], path: Path) -> None:
    """The weights of a model, or tensors by name, as one safetensors file; a shared matrix once.

    Raises CheckpointError for quantized weights, and where the disk refuses.
    """
    if isinstance(weights, nn.Module):
        refuse_quantized(weights)
    try:
        write_tensors(dict(weights.named_parameters()) if isinstance(weights, nn.Module) else weights, path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}; free some space and {option('resume', True)}"
        ) from None


def refuse_quantized(model: nn.Module) -> None:
    """Raises CheckpointError where `model` has quantized weights: no file that is written here has a place for them."""
    if is_quantized(model):
        raise CheckpointError(
            f"quantized weights are to be read, and are not saved; load the run without {option('quantize')}"
        )


def load_initial_weights(model: nn.Module, tokenizer: Tokenizer) -> None:
    """Give `model` the weights of the run that its `init_from` names; nothing where it names none.

    Learned positions beyond the model's context are left out. `tokenizer`: that of the data, which must be the run's.
    Raises CheckpointError where the run is gone or changed, DataError for another tokenizer, ConfigError for another
    shape.
    """
    start: tuple[Path, str] | None = getattr(model, "init_from", None)
    if start is None:
        return
    folder, digest = start
    path = folder / "model.safetensors"
    if not path.is_file() or weights_digest(path) != digest:
        state = "holds other weights than when the config was read" if path.is_file() else "is not there"
        raise CheckpointError(f"model.init_from: {path} {state}; put it back, or set model.init_from anew")
    theirs = load_tokenizer(folder / "tokenizer")
    if theirs.hash != tokenizer.hash:
        raise DataError(
            f"model.init_from: {folder} has tokenizer {theirs.name} ({theirs.vocab_size} ids), the data is of "
            f"{tokenizer.name} ({tokenizer.vocab_size}); prepare it with {option('tokenizer', folder / 'tokenizer')}"
        )
    tensors, own = _read_weights(path), dict(model.named_parameters())
    positions = "position.embedding.weight"
    if positions in own and positions in tensors:
        tensors[positions] = tensors[positions][: len(own[positions])]
    for name in [*own, *tensors]:
        here, there = (list(side[name].shape) if name in side else "absent" for side in (own, tensors))
        if here != there:
            raise ConfigError(
                f"model.init_from: {name} is {here} here and {there} in {folder}; leave what shapes the model as it is "
                "there",
                key="model.init_from",
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model.safetensors. Raises CheckpointError where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); load a checkpoint of the run instead") from None


def _load_weights(folder: Path, model: nn.Module, checkpoint: str | None) -> int | None:
    """Load them; the step of the checkpoint they are from, None for the final ones."""
    final = folder / runfolder.WEIGHTS
    if checkpoint is None and final.is_file():
        runfolder.say_changed_weights(folder)
        tensors = _read_weights(final)
        own = dict(model.named_parameters())
        odd = set(own) ^ set(tensors) or {n for n in own if own[n].shape != tensors[n].shape}
        if odd:
            raise CheckpointError(f"{final} does not fit config.yaml: {sorted(odd)[0]}; was either of them edited?")
        if wrong := next((n for n in own if own[n].dtype != tensors[n].dtype), None):
            there, here = (str(side[wrong].dtype).removeprefix("torch.") for side in (tensors, own))
            say(f"careful: {final} holds {wrong} as {there}, and a run keeps its weights as {here}: it was converted")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])
        return None
    chosen = _find_checkpoint(folder, checkpoint or "last")
    load_tensors(chosen, model, None, World())
    return checkpoint_step(chosen)


def _find_checkpoint(folder: Path, name: str) -> Path:
    """The checkpoint of a run by its name: a folder's, `last` (the newest whole one), or `best` (of those that are
    there, the one with the lowest validation loss). Raises CheckpointError where there is none such."""
    from gptlab.record.metrics import read_metrics

    checkpoints = Checkpoints(folder / "checkpoints", keep=1, world=World())
    there = {checkpoint_step(path): path for path in checkpoints.all()}
    names = [path.name for path in there.values()]
    if name == "last":
        if (newest := checkpoints.newest_whole()) is None:
            raise CheckpointError(f"{folder} holds no weights yet; train it with `gptlab train {folder} --resume`")
        return newest
    if name == "best":
        losses = {row["step"]: row["val/loss"] for row in read_metrics(folder / "metrics.jsonl") if "val/loss" in row}
        validated = [step for step in there if losses.get(step) is not None]
        if not validated:
            raise CheckpointError(
                f"{folder} has no checkpoint that was validated; it has {', '.join(names) or 'none'} "
                "(checkpoint.best=true keeps the best of a run)"
            )
        return there[min(validated, key=losses.__getitem__)]
    if name not in names:
        raise CheckpointError(f"{folder} has no checkpoint {name!r}; it has {', '.join(names) or 'none'}")
    return checkpoints.folder / name


def _windows(ids: np.ndarray, length: int) -> Iterator[Batch]:
    """A text longer than the context, in windows that each start where the last one ended."""
    for start in range(0, len(ids) - 1, length):
        inputs, targets = ids[start : start + length], ids[start + 1 : start + 1 + length]
        inputs = inputs[: len(targets)]
        documents = np.zeros((1, len(inputs)), dtype=np.int32)
        yield Batch(inputs[None], targets[None], documents, int((targets != IGNORE).sum()))
