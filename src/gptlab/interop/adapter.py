"""A model of gptlab's as transformers sees one: what the code that `gptlab export --format hf-code` writes stands on.

The folder's own two modules are a few lines each, and inherit from here; the model that computes is gptlab's, from the
config it was trained with. Nothing of gptlab imports this module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from gptlab.config import config_from
from gptlab.inference.cache import KVCache
from gptlab.model import build_model


class Config(PretrainedConfig):
    """config.json. `gptlab`: what of the run's config the model is built from; `vocab_size`: ids that are predicted."""

    model_type = "gptlab"

    def __init__(self, gptlab: dict[str, Any] | None = None, vocab_size: int = 1, **others: Any) -> None:
        self.gptlab, self.vocab_size = gptlab or {}, vocab_size
        super().__init__(**others)


class Cache(KVCache):
    """gptlab's own cache, under the names that `generate` of transformers calls."""

    is_compileable = False

    def get_seq_length(self, layer_index: int = 0) -> int:
        """Positions that are held."""
        return self.length

    def reorder_cache(self, rows: Tensor) -> None:
        """Go on with these rows, in this order: a beam search."""
        self.select(rows)


class CausalLM(GenerationMixin, PreTrainedModel):
    """Token ids (B, T) → logits (B, T, V), of a model of gptlab's.

    What stands at the left of a row where `attention_mask` is 0 is padding. A text is at most as long as the model's
    context. `code`: the folder with the files of components that came along.
    """

    config_class = Config
    base_model_prefix = "model"
    code = Path()

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        given = {**config.gptlab, "model": resolved(config.gptlab.get("model", {}), self.code)}
        with torch.device("cpu"):  # transformers builds on none, and cannot fill buffers that are not stored
            self.model = build_model(config_from(given), config.vocab_size)
        self.context_length: int = self.model.context_length
        self._buffers_as_built = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self._said_of = {name: dict(vars(parameter)) for name, parameter in self.model.named_parameters()}
        self._tied_weights_keys = tied_names(self)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """As of transformers, which leaves buffers that are not stored undefined, and parameters without what gptlab's
        components say of them: both are as they were built."""
        loaded = super().from_pretrained(*args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for name, buffer in model.model.named_buffers():
            buffer.copy_(model._buffers_as_built[name])
        for name, parameter in model.model.named_parameters():
            vars(parameter).update(model._said_of[name])
        return loaded

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes its own

    def _init_weights(self, module: nn.Module) -> None:
        """gptlab has drawn them."""

    def get_input_embeddings(self) -> nn.Module:
        """The table of token ids."""
        embedding: nn.Module = self.model.embedding
        return embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """The head, where the model has one by that name."""
        return getattr(self.model, "head", None)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of the last `logits_to_keep` tokens (0: all). `loss`, where `labels` are given, is the mean cost of
        the next token in nats, without those labelled −100. Raises ValueError for what the model has no place for."""
        if unknown := [name for name, value in others.items() if value is not None and name not in _IGNORED]:
            raise ValueError(f"a model of gptlab's takes no {unknown[0]}; leave it out")
        if past_key_values is not None and not isinstance(past_key_values, Cache):
            raise ValueError("a model of gptlab's keeps a cache of its own; pass no past_key_values at first")
        length, held = input_ids.shape[1], 0 if past_key_values is None else past_key_values.length
        if held + length > self.context_length:
            raise ValueError(
                f"{held + length} tokens are more than the model's context of {self.context_length}; shorten the text, "
                "or lower max_new_tokens"
            )
        cache, padding = past_key_values, None if held else left_padding(attention_mask)
        if cache is None and (use_cache or padding is not None):
            blocks = self.config.num_hidden_layers
            cache = Cache(blocks, self.context_length, padding, device=input_ids.device)
        hidden = self.model(input_ids) if cache is None else self.model(input_ids, cache=cache)
        if cache is not None:
            cache.advance(length)
        logits = self.model.logits(hidden[:, -logits_to_keep:])
        loss = (
            None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        )
        out = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache if use_cache else None)
        return out.to_tuple() if return_dict is False else out

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """What has not been read yet."""
        return {
            "input_ids": input_ids[:, 0 if past_key_values is None else past_key_values.length :],
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": 1,
        }


_IGNORED = ("position_ids", "cache_position", "output_attentions", "output_hidden_states", "num_items_in_batch")


def resolved(value: Any, folder: Path) -> Any:
    """A slot value in which every file that a `use` names is one of `folder`."""
    if not isinstance(value, Mapping):
        return [resolved(item, folder) for item in value] if isinstance(value, list) else value
    found = {key: resolved(item, folder) for key, item in value.items()}
    with contextlib.suppress(KeyError, AttributeError):
        file, colon, name = found["use"].rpartition(":")
        if colon and file.endswith(".py"):
            found["use"] = f"{folder / file}:{name}"
    return found


def tied_names(module: nn.Module) -> dict[str, str]:
    """Names of parameters that are others too, with the name that each is stored under."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in named if first.setdefault(id(p), name) != name}


def left_padding(attention_mask: Tensor | None) -> Tensor | None:
    """How many zeros stand at the left of each row, (B,); None where there are none. Those at the right are after all
    that is asked for. Raises ValueError for others."""
    if attention_mask is None or bool(attention_mask.all()):
        return None
    real = attention_mask.bool()
    first = real.int().argmax(1)
    if bool((real[:, 1:] & ~real[:, :-1]).sum(1).gt(1 - real[:, 0].int()).any()):
        raise ValueError("attention_mask has a gap in a row; a model of gptlab's knows padding at the ends alone")
    return first if bool(first.any()) else None
