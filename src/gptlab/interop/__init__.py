"""Weights of others, in and out: `import_run` makes a run folder of them, `export_run` writes a run for others, `load`
takes a run folder or a file of others as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.console import waiting
from gptlab.errors import CheckpointError, option

if TYPE_CHECKING:
    from gptlab.run import Run

FORMATS = ("hf", "nanogpt", "gguf")


def load(source: str | Path, *, device: str = "auto", dtype: str = "auto", checkpoint: str | None = None) -> Run:
    """A run, ready to use, from its folder or from a nanoGPT `ckpt.pt`. Arguments as of `gptlab.run.load`."""
    from gptlab import run

    source = Path(source)
    if source.suffix != ".pt":
        return run.load(source, device=device, dtype=dtype, checkpoint=checkpoint)
    if checkpoint is not None:
        raise CheckpointError(f"{source} is one file, without checkpoints; leave out {option('checkpoint')}")
    from gptlab.interop.nanogpt import load_nanogpt

    return run.make_run(source, *load_nanogpt(source), device=device, dtype=dtype)


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
        source: a Hugging Face folder or model of the hub (see `gptlab.interop.huggingface`), or a nanoGPT `ckpt.pt`.
        name: of the run.
        tokenizer: name or folder of its tokenizer; None: the one beside the weights.
        end_of_text, document_end: the tokens before and after every document; None: as the tokenizer's files say.
        stop: more tokens that end what is generated, besides these and what the files say.
        runs: the folder for the run's folder.

    Raises GptlabError where anything is missing, damaged, unknown or does not fit; then nothing is written.
    """
    roles: dict[str, Any] = {"end_of_text": end_of_text, "document_end": document_end, "stop": stop}
    if str(source).endswith(".pt"):
        if given := next((role for role, value in roles.items() if value), None):
            raise CheckpointError(
                f"{option(given)} is for a Hugging Face tokenizer; name a tokenizer with {option('tokenizer')}"
            )
        from gptlab.interop.nanogpt import import_nanogpt

        with waiting(f"importing {source}"):
            return import_nanogpt(Path(source), name=name, tokenizer=tokenizer, runs=runs)
    from gptlab.interop.huggingface import import_huggingface

    with waiting(f"importing {source}"):
        return import_huggingface(source, name=name, tokenizer=tokenizer, runs=runs, **roles)


def export_run(run: Run, folder: str | Path, format: str = "hf") -> Path:
    """Write `run` into the new folder `folder` as "hf", "nanogpt" or "gguf"; return the folder or the file in it.

    Raises CheckpointError naming the part of the model that the format has no place for; then nothing is written.
    """
    folder = Path(folder)
    with waiting(f"writing {folder}"):
        if format == "hf":
            from gptlab.interop.huggingface import export_huggingface

            return export_huggingface(run, folder)
        if format == "nanogpt":
            from gptlab.interop.nanogpt import export_nanogpt

            return export_nanogpt(run, folder)
        if format == "gguf":
            from gptlab.interop.gguf import export_gguf

            return export_gguf(run, folder)
    raise CheckpointError(f"no format {format!r}; known: {', '.join(FORMATS)}")


__all__ = ["FORMATS", "export_run", "import_run", "load"]
