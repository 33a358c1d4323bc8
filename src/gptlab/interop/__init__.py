"""Weights of others, in and out: `import_run` makes a run folder of them, `export_run` writes a run for others, `load`
takes a run folder or a file of others as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.console import waiting
from gptlab.errors import CheckpointError, option

if TYPE_CHECKING:
    from gptlab.run import Run

FORMATS = ("hf", "hf-code", "nanogpt", "gguf")


def load(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    checkpoint: str | None = None,
    quantize: str | None = None,
) -> Run:
    """A run, ready to use, from its folder or from a nanoGPT `ckpt.pt`. Arguments as of `gptlab.run.load`."""
    from gptlab import run

    source = Path(source)
    if source.suffix != ".pt":
        return run.load(source, device=device, dtype=dtype, checkpoint=checkpoint, quantize=quantize)
    if checkpoint is not None:
        raise CheckpointError(f"{source} is one file, without checkpoints; leave out {option('checkpoint')}")
    from gptlab.interop.nanogpt import load_nanogpt

    return run.make_run(source, *load_nanogpt(source), device=device, dtype=dtype, quantize=quantize)


def import_run(
    source: str | Path,
    *,
    name: str,
    tokenizer: str | None = None,
    end_of_text: str | None = None,
    document_end: str | None = None,
    stop: Sequence[str] = (),
    runs: Path = Path("runs"),
) -> Path:
    """Make the run folder `runs`/NAME-HASH of weights from elsewhere, and return it.

    Args:
        source: a Hugging Face folder or model of the hub (see `gptlab.interop.huggingface`), a `ckpt.pt` of nanoGPT or
            llama2.c, a `.bin` of llama2.c, a `.gguf`, or a folder trained/NAME of templateGPT.
        name: of the run.
        tokenizer: name or folder of its tokenizer; None: the one beside the weights.
        end_of_text, document_end: the tokens before and after every document; None: as the tokenizer's files say.
        stop: more tokens that end what is generated, besides these and what the files say.
        runs: the folder for the run's folder.

    Raises GptlabError where anything is missing, damaged, unknown or does not fit; then nothing is written.
    """
    roles: dict[str, Any] = {"end_of_text": end_of_text, "document_end": document_end, "stop": stop}
    importer = _importer(Path(source))
    with waiting(f"importing {source}"):
        if importer is None:
            from gptlab.interop.huggingface import import_huggingface

            return import_huggingface(source, name=name, tokenizer=tokenizer, runs=runs, **roles)
        if given := next((role for role, value in roles.items() if value), None):
            raise CheckpointError(
                f"{option(given)} is for a Hugging Face tokenizer; name a tokenizer with {option('tokenizer')}"
            )
        return importer(Path(source), name=name, tokenizer=tokenizer, runs=runs)


def _importer(source: Path) -> Callable[..., Path] | None:
    """Whose file or folder `source` is, where it is not Hugging Face's."""
    if source.suffix == ".pt":
        from gptlab.interop.llama2c import import_llama2c
        from gptlab.interop.nanogpt import import_nanogpt

        return import_nanogpt if is_nanogpt(source) else import_llama2c
    if source.suffix == ".bin":
        from gptlab.interop.llama2c import import_llama2c

        return import_llama2c
    if source.suffix == ".gguf":
        from gptlab.interop.gguf import import_gguf

        return import_gguf
    if (source / "model_config.json").is_file() and (source / "model.pth").is_file():
        from gptlab.interop.templategpt import import_templategpt

        return import_templategpt
    return None


def is_nanogpt(source: Path) -> bool:
    """Whether a `.pt` is nanoGPT's, and not llama2.c's. Raises CheckpointError where it cannot be read."""
    from gptlab.interop.tensors import read_pickle

    content = read_pickle(source)
    sizes = content.get("model_args") if isinstance(content, Mapping) else None
    return not (isinstance(sizes, Mapping) and "n_layers" in sizes)


def export_run(run: Run, folder: str | Path, format: str = "hf") -> Path:
    """Write `run` into the new folder `folder` as "hf", "hf-code", "nanogpt" or "gguf"; return the folder or the file
    in it.

    Raises CheckpointError naming the part of the model that the format has no place for, quantized weights among them;
    then nothing is written.
    """
    from gptlab.run import refuse_quantized

    folder = Path(folder)
    refuse_quantized(run.model)
    with waiting(f"writing {folder}"):
        if format == "hf":
            from gptlab.interop.huggingface import export_huggingface

            return export_huggingface(run, folder)
        if format == "hf-code":
            from gptlab.interop.remote_code import export_remote_code

            return export_remote_code(run, folder)
        if format == "nanogpt":
            from gptlab.interop.nanogpt import export_nanogpt

            return export_nanogpt(run, folder)
        if format == "gguf":
            from gptlab.interop.gguf import export_gguf

            return export_gguf(run, folder)
    raise CheckpointError(f"no format {format!r}; known: {', '.join(FORMATS)}")


__all__ = ["FORMATS", "export_run", "import_run", "is_nanogpt", "load"]
