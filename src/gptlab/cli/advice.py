"""What a command proposes to be done next."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path


def preparation(tokenizer: str, inputs: Sequence[str]) -> str:
    """The command that prepares `inputs`, what a tokenizer was trained on, with a validation split: the files whose
    names say validation where those of `inputs` say train, else a hundredth."""
    from gptlab.data.preset import preset_names

    if inputs[0] in preset_names() and not Path(inputs[0]).exists():
        return f"gptlab data prepare {inputs[0]} --tokenizer {tokenizer}"
    words = [f"--input '{each}'" for each in inputs]
    held_out = [
        other
        for word in ("validation", "valid", "val")
        if (other := inputs[0].replace("train", word)) != inputs[0] and glob.glob(other)
    ]
    words += [f"--validation '{held_out[0]}'" if held_out else "--validation-fraction 0.01"]
    folder = Path(inputs[0]).parent.name if "://" not in inputs[0] else ""
    return f"gptlab data prepare {' '.join(words)} --tokenizer {tokenizer} --out data/{folder or tokenizer}"
