"""Sources of text: files, folders, globs, URLs, Hugging Face data sets and the Python standard library.

`resolve` turns what people name into sources; each kind of source is a module of its own, found by `kinds`.
"""

from gptlab.data.sources.base import Block, Cursor, Document, Reading, Source
from gptlab.data.sources.resolve import iter_documents, read_blocks
from gptlab.data.sources.selection import Input

__all__ = ["Block", "Cursor", "Document", "Input", "Reading", "Source", "iter_documents", "read_blocks"]
