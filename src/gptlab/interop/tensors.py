"""Files of tensors that others wrote, read one tensor at a time and without running anything they hold.

`model.safetensors`, or `pytorch_model.bin` (a pickle, read by torch's `weights_only` unpickler, which refuses code),
each in one file or in several that a `….index.json` lists.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab.errors import CheckpointError

_KINDS = ("model.safetensors", "pytorch_model.bin")
_AGAIN = "download it again"


class TensorFiles:
    """The tensors of a folder: names and shapes at once, values one by one.

    Attributes:
        files: the files that hold them.
        shapes: the shape of each tensor, by name.

    Raises CheckpointError where there are none, or a file is missing, damaged, or holds anything but tensors.
    """

    def __init__(self, folder: Path) -> None:
        self.files = _find(folder)
        self._where: dict[str, Path] = {}
        self._pickled: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in self.files:
            shapes = self._open(file)
            if twice := sorted(set(shapes) & set(self.shapes)):
                raise CheckpointError(f"{file}: tensor {twice[0]} is also in another file; {_AGAIN}")
            self.shapes |= shapes
            self._where |= dict.fromkeys(shapes, file)

    def __getitem__(self, name: str) -> Tensor:
        """One tensor, in the precision it is stored in."""
        if name in self._pickled:
            return self._pickled[name]
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._where[name], framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self._where[name]} is damaged ({_line(error)}); {_AGAIN}") from None

    def _open(self, file: Path) -> dict[str, tuple[int, ...]]:
        if file.suffix != ".safetensors":
            content = read_pickle(file)
            if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
                raise CheckpointError(
                    f"{file} is no table of names and tensors; is it a checkpoint of another program?"
                )
            self._pickled |= content
            return {name: tuple(tensor.shape) for name, tensor in content.items()}
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt") as opened:
                return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise CheckpointError(f"{file} is missing, and an index beside it names it; {_AGAIN}") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged ({_line(error)}); {_AGAIN}") from None


def _find(folder: Path) -> list[Path]:
    """The files of the first kind that the folder holds, whole before sharded."""
    for name in _KINDS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            try:
                files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
                return sorted(folder / Path(file).name for file in files)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise CheckpointError(f"{index} is no index of tensors; {_AGAIN}") from None
    raise CheckpointError(f"{folder} holds no weights: no {' or '.join(_KINDS)}, whole or with an .index.json")


def read_pickle(path: Path) -> Any:
    """What a file of `torch.save` holds, if that is tensors and plain values; nothing else is ever run.

    Raises CheckpointError where the file is missing, damaged, or holds more.
    """
    _check_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}; check the path") from None
    except pickle.UnpicklingError as error:
        first = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "")
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, and was not run ({' '.join(first.split())[:120]}); "
            "save it again with tensors only, and do not trust where it came from"
        ) from None
    except Exception as error:  # an unpickler fed with junk raises whatever the junk asks for
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {_line(error)})"
        ) from None


def _check_zip(path: Path) -> None:
    """Raise CheckpointError where a file of `torch.save`, a zip archive, is not what its checksums say.

    torch does not look at them. The format before torch 1.6 has none.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            if bad is not None:
                raise CheckpointError(f"{path} is damaged (the checksum of {bad} is another); {_AGAIN}")
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({_line(error)}); {_AGAIN}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
