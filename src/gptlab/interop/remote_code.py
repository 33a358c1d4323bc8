"""Runs that transformers has no class for, as folders that bring one: `AutoModelForCausalLM.from_pretrained(folder,
trust_remote_code=True)`, where gptlab is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptlab.config.identity import component_files
from gptlab.config.signatures import own_sources
from gptlab.config.slots import Slot, used_files, used_modules
from gptlab.errors import CheckpointError
from gptlab.interop.huggingface import token_ids, write_folder
from gptlab.run import Run
from gptlab.version import __version__

CONFIGURATION, MODELING = "configuration_gptlab", "modeling_gptlab"

_CONFIGURATION = '''"""config.json of a model of gptlab's, for transformers. Needs: pip install gptlab"""

from gptlab.interop.adapter import Config


class GptlabConfig(Config):
    """See `gptlab.interop.adapter`."""
'''

_MODELING = '''"""A model of gptlab's, for transformers. Needs: pip install gptlab"""

from pathlib import Path

from gptlab.interop.adapter import CausalLM

from .configuration_gptlab import GptlabConfig
@CARRIED@

class GptlabForCausalLM(CausalLM):
    """See `gptlab.interop.adapter`."""

    config_class = GptlabConfig
    code = Path(__file__).parent
'''

_CARRIED = """
if False:  # named, so that transformers brings the files along; gptlab reads them where they lie
@IMPORTS@
"""


def export_remote_code(run: Run, folder: Path) -> Path:
    """Write `run` as a folder that `AutoModelForCausalLM` (with `trust_remote_code`) and `AutoTokenizer` load.

    Components in files of a user's own come along. Raises CheckpointError naming one that cannot, where the folder
    holds something already, or the disk refuses.
    """
    files = carried_files(run)
    config = remote_config(run, {name: path.name for name, path in files.items()})
    tensors = {f"model.{name}": p.detach().float().cpu().contiguous() for name, p in run.model.named_parameters()}
    texts = {
        f"{CONFIGURATION}.py": _CONFIGURATION,
        f"{MODELING}.py": _MODELING.replace("@CARRIED@", _imports(run, files)),
    }
    texts |= {path.name: path.read_text(encoding="utf-8") for path in files.values()}
    return write_folder(run, folder, config, tensors, texts)


def remote_config(run: Run, names: dict[str, str]) -> dict[str, Any]:
    """config.json: what the model is built from, and what programs ask of any. `names`: of a file, the new one."""
    model, section = run.model, run.config.model.plain()
    section["init_from"] = None
    sizes = {"hidden_size": "dim", "num_attention_heads": "heads", "max_position_embeddings": "context_length"}
    return {
        "architectures": ["GptlabForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{CONFIGURATION}.GptlabConfig",
            "AutoModelForCausalLM": f"{MODELING}.GptlabForCausalLM",
        },
        "model_type": "gptlab",
        "gptlab_version": __version__,
        "gptlab": {"model": _renamed(section, names), "train": _lengths(run)},
        "vocab_size": run.tokenizer.vocab_size,
        "num_hidden_layers": len(model.blocks),
        **{theirs: getattr(model, ours) for theirs, ours in sizes.items() if hasattr(model, ours)},
        "tie_word_embeddings": len(dict(model.named_parameters()))
        < len(list(model.named_parameters(remove_duplicate=False))),
        "use_cache": True,
        "pad_token_id": None,
        **token_ids(run.tokenizer),
        "torch_dtype": "float32",
    }


def _lengths(run: Run) -> dict[str, int]:
    """The `train` section of a run of one sequence a step: a model may take its context from it."""
    length = run.config.train.sequence_length
    return {"sequence_length": length, "batch_tokens": length}


def carried_files(run: Run) -> dict[str, Path]:
    """Files of components that the model is made of, by the path that the config names them with."""
    slot: Slot = run.config.model
    where = f"{run.folder} cannot be exported with code: the model is made of"
    if modules := used_modules(slot):
        raise CheckpointError(f"{where} {min(modules)}, a module of your own; name it as a file in the config")
    files = {name: path for name, path in component_files(run.config).items() if name in used_files(slot)}
    for path in files.values():
        if others := own_sources(path):
            raise CheckpointError(f"{where} {path.name}, which imports {others[0].name}; make one file of them")
        if not path.stem.isidentifier() or path.stem in (CONFIGURATION, MODELING):
            raise CheckpointError(f"{where} {path.name}, which is no name of a module there; rename the file")
    if len({path.name for path in files.values()}) < len(files):
        raise CheckpointError(f"{where} two files of one name; rename one")
    return files


def _imports(run: Run, files: dict[str, Path]) -> str:
    """Lines that name the files which come along; empty where none does."""
    lines = [f"    from .{path.stem} import *" for path in files.values()]
    return _CARRIED.replace("@IMPORTS@", "\n".join(lines)) if lines else ""


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, str):
        file, colon, name = value.rpartition(":")
        return f"{names[file]}:{name}" if colon and file in names else value
    return value
