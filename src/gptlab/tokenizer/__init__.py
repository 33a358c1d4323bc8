"""Tokenizers: text to ids and back.

`Tokenizer` is the one class; `load_tokenizer` finds one by name or folder; `training` makes new ones from a stream of
text; `formats` imports those of other programs (GPT-2's files, Hugging Face's `tokenizer.json`).
"""

from __future__ import annotations

from gptlab.tokenizer.core import END_OF_TEXT, SpecialPolicy, Tokenizer, byte_tokenizer, char_tokenizer
from gptlab.tokenizer.formats import import_tokenizer
from gptlab.tokenizer.loading import load_tokenizer
from gptlab.tokenizer.training import grow_bpe, train_bpe, train_char

__all__ = [
    "END_OF_TEXT",
    "SpecialPolicy",
    "Tokenizer",
    "byte_tokenizer",
    "char_tokenizer",
    "grow_bpe",
    "import_tokenizer",
    "load_tokenizer",
    "train_bpe",
    "train_char",
]
