"""The model: GPT and its parts, each a slot."""

from gptlab.model.block import Block
from gptlab.model.build import build_model
from gptlab.model.transformer import GPT

__all__ = ["GPT", "Block", "build_model"]
