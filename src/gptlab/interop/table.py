"""What an architecture of others is called: one table, read in one direction to import and in the other to export.

An `Architecture` pairs the fields of a `config.json` with keys of our `model` section, and the names of tensors with
ours. Whether a model can be exported at all follows from the table too: its `model` section is written as the other
config, read back, and must be what it was (`Architecture.mismatches`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gptlab.config import config_from, difference
from gptlab.errors import CheckpointError, did_you_mean
from gptlab.model.mlp import hidden_width

REQUIRED = object()
Values = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """A field of their config and the keys of our `model` section that say the same.

    Attributes:
        theirs: its name in config.json.
        ours: dotted keys in `model`, all of one value.
        default: what it is where config.json does not say (a function of config.json, or a value).
        words: their word for a value → ours, where they differ; no other is known.
    """

    theirs: str
    ours: tuple[str, ...]
    default: Any = REQUIRED
    words: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Row:
    """One tensor of ours and what it is elsewhere; `{i}` stands for the number of a block.

    Attributes:
        ours: our module.
        theirs: their module; several hold our rows one after another.
        kinds: `weight`, `bias`, or both.
        turned: stored as (in, out), as GPT-2's Conv1D does.
        part: (k, n) where ours is the k-th of n equal parts of their rows, counted from 0, as of Phi-3's gate and up.
        more: how much more ours is than theirs, whose norms multiply by 1 + weight (Gemma).
    """

    ours: str
    theirs: tuple[str, ...]
    kinds: tuple[str, ...] = ("weight",)
    turned: bool = False
    part: tuple[int, int] = (0, 1)
    more: float = 0.0


@dataclass(frozen=True)
class Architecture:
    """A family of models as transformers knows it.

    Attributes:
        name: `model_type` in config.json.
        class_name: the class in transformers.
        fields: the config, in both directions.
        constant: what our `model` section always is for it, by dotted key.
        rows: the tensors, from our `model` section.
        must_be: fields that may only have this value (their default): gptlab has nothing for another.
        inert: fields that change no number of a model that is evaluated.
        ignored: tensors that are no parameters.
        prefix: what stands before the names of all tensors but the head's.
        read_extra, write_extra: what a pair of names cannot say, their config → dotted keys, and back.
        fillable: dotted keys of parts that ours may lack and theirs cannot: zeros or ones take their place.
    """

    name: str
    class_name: str
    fields: tuple[Field, ...]
    constant: Mapping[str, Any]
    rows: Callable[[Values], list[Row]]
    must_be: Mapping[str, Any]
    inert: frozenset[str]
    ignored: re.Pattern[str]
    prefix: str
    read_extra: Callable[[Values], Values] = lambda theirs: {}
    write_extra: Callable[[Values], Values] = lambda model: {}
    extra_fields: frozenset[str] = frozenset()
    fillable: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    # ------------------------------------------------------------ config

    def model_section(self, theirs: Mapping[str, Any], where: str) -> Values:
        """Our `model` section for a config.json. `where` names it in errors.

        Raises CheckpointError for a field that is missing, unknown, or has a value that gptlab has no part for.
        """
        try:
            return self._section(dict(theirs), where)
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise CheckpointError(
                f"{where} is no config of {self.name}: its values do not fit together ({type(error).__name__}: {error})"
            ) from None

    def _section(self, theirs: Values, where: str) -> Values:
        for key, wanted in (COMMON_MUST_BE | dict(self.must_be)).items():
            if key in theirs and theirs[key] != wanted:
                raise CheckpointError(
                    f"{where}: {key} is {theirs[key]!r}, and gptlab has that only as {wanted!r}; "
                    f"this {self.name} model cannot be imported"
                )
        fields = {f.theirs for f in self.fields} | set(self.must_be) | self.extra_fields
        known = fields | self.inert | COMMON | set(COMMON_MUST_BE)
        unknown = sorted(key for key, value in theirs.items() if key not in known and value is not None)
        if unknown:
            shown = ", ".join(f"{key!r} ({str(theirs[key])[:60]})" for key in unknown)
            near = did_you_mean(unknown[0], fields)
            hint = f"; {near.rstrip('. ')}" if len(unknown) == 1 and near.startswith("did you mean") else ""
            what = "is no field" if len(unknown) == 1 else "are no fields"
            raise CheckpointError(
                f"{where}: {shown} {what} of {self.name} that gptlab knows{hint}; "
                "delete what changes no number, and import nothing that has what does"
            )
        section: Values = {}
        for key, value in self.constant.items():
            set_key(section, key, value)
        for entry in self.fields:
            value = self._read(entry, theirs, where)
            for key in entry.ours:
                set_key(section, key, value)
        for key, value in self.read_extra(theirs).items():
            set_key(section, key, value)
        return section

    def _read(self, entry: Field, theirs: Values, where: str) -> Any:
        value = theirs.get(entry.theirs)
        if value is None:
            if entry.default is REQUIRED:
                raise CheckpointError(f"{where} does not say {entry.theirs}; it is no whole config of {self.name}")
            value = entry.default(theirs) if callable(entry.default) else entry.default
        if entry.words is None:
            if not isinstance(value, int | float):
                raise CheckpointError(f"{where}: {entry.theirs} is {str(value)[:60]!r} and should be a number")
            return value
        if value not in entry.words:
            choices = ", ".join(entry.words)
            raise CheckpointError(f"{where}: {entry.theirs} is {value!r}, which gptlab does not have; known: {choices}")
        return entry.words[value]

    def to_config_json(self, model: Mapping[str, Any], rows: int) -> Values:
        """config.json for a `model` section as `with_computed_sizes` gives it, with `rows` token ids."""
        values: Values = {"architectures": [self.class_name], "model_type": self.name, "vocab_size": rows}
        for entry in self.fields:
            value = get(model, entry.ours[0])
            if entry.words is not None:
                value = next((word for word, ours in entry.words.items() if ours == value), value)
            values[entry.theirs] = value
        return values | dict(self.must_be) | self.write_extra(dict(model))

    def mismatches(self, model: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """Where `model` (as `with_computed_sizes` gives it) is not of this architecture: (key, here, there) each."""
        try:
            back = self.model_section(self.to_config_json(model, 1), "config.json")
        except CheckpointError:
            # Written as theirs it is not even readable: compare with what the architecture always is.
            found = [
                (key, get(model, key), wanted) for key, wanted in self.constant.items() if get(model, key) != wanted
            ]
            return found or [("use", model.get("use"), self.name)]
        there = with_computed_sizes(config_from({"model": back}).model.plain(), 1)
        differences = difference(dict(model), there)
        free = (*self.fillable, *_NO_MATTER)
        return [d for d in differences if not any(f"{d[0]}.".startswith(f"{key}.") for key in free)]

    # ------------------------------------------------------------ tensors

    def names(self, model: Values) -> Iterator[tuple[str, list[str], Row, str]]:
        """Every tensor: our name, their names, the row of the table, and its kind."""
        for row in self.rows(model):
            blocks = range(model["layers"]) if "{i}" in row.ours else range(1)
            for i in blocks:
                for kind in row.kinds:
                    ours = f"{row.ours.replace('{i}', str(i))}.{kind}"
                    yield ours, [self._full(f"{name.replace('{i}', str(i))}.{kind}") for name in row.theirs], row, kind

    def _full(self, name: str) -> str:
        return name if name.startswith("lm_head") else self.prefix + name

    def canonical_name(self, name: str) -> str:
        """One of their names with the prefix that this architecture's files may leave out or add to."""
        name = name.removeprefix("_orig_mod.").removeprefix(self.prefix)
        return self._full(name)


COMMON_MUST_BE: dict[str, Any] = {
    "rope_interleaved": False,
    "use_mrope": False,
    "pruned_heads": {},
    "is_encoder_decoder": False,
    "add_cross_attention": False,
}
"""Fields of any config.json that may have this value alone."""

COMMON = frozenset(
    [
        "_commit_hash",
        "_model_name_or_path",
        "unk_token_id",
        "mask_token_id",
        "cls_token_id",
        "is_llama_config",
        "transformers.js_config",
        "unsloth_version",
        "unsloth_fixed",
        "_flash_attn_2_enabled",
        "_unsloth_fixed",
        "neftune_noise_alpha",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "bad_words_ids",
        "num_beam_groups",
        "diversity_penalty",
        "encoder_no_repeat_ngram_size",
        "tf_legacy_loss",
        "cross_attention_hidden_size",
        "model_type",
        "architectures",
        "vocab_size",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "_name_or_path",
        "name_or_path",
        "initializer_range",
        "task_specific_params",
        "tokenizer_class",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "torchscript",
        "use_bfloat16",
        "problem_type",
        "finetuning_task",
        "id2label",
        "label2id",
        "num_labels",
        "prefix",
        "_attn_implementation",
        "attn_implementation",
        "chunk_size_feed_forward",
        "is_decoder",
        "tie_encoder_decoder",
        "_attn_implementation_autoset",
        "max_length",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "num_return_sequences",
        "transformers_weights",
    ]
)
"""Fields of every config.json of transformers that change no logits: token numbers, classes, how to generate."""

_NO_MATTER = (
    "initialization",
    "dropout",
    "pad_vocab",
    "init_from",
    "block.attention.document_mask",
    "block.attention.backend",
    "block.attention.weight_dropout",
    "embedding_dropout",
    "position.angles",
    "block.attention_dropout",
    "block.mlp_dropout",
)
"""Keys of `model` that change training alone, or only how the same thing is stored."""


def set_key(section: Values, dotted: str, value: Any) -> None:
    """Set a dotted key of nested dictionaries."""
    *parents, last = dotted.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value


def get(section: Mapping[str, Any], dotted: str) -> Any:
    """A dotted key of nested dictionaries; None where there is none."""
    value: Any = section
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def with_computed_sizes(model: Mapping[str, Any], sequence_length: int) -> Values:
    """A resolved `model` section with what it leaves to be computed written out, so that two can be compared.

    Heads, widths and the context get their numbers; the arguments from which the MLP's width follows are dropped.
    """
    values: Values = {**model}
    values["head_dim"] = model.get("head_dim") or model["dim"] // model["heads"]
    values["context_length"] = model.get("context_length") or sequence_length
    block = values["block"] = {**model["block"]}
    if "attention" in block and "kv_heads" in block["attention"]:
        attention = block["attention"] = {**block["attention"]}
        attention["kv_heads"] = attention["kv_heads"] or model["heads"]
        if "out_bias" in attention and attention["out_bias"] is None:
            attention["out_bias"] = attention["bias"]
        if attention.get("window") is not None and "pattern" in attention:
            attention["pattern"] = shortest_pattern(_letters(attention["pattern"], model["layers"]))
    if "mlp" in block and {"ratio", "hidden", "multiple_of"} <= set(block["mlp"]):
        mlp = block["mlp"] = {**block["mlp"]}
        shape = mlp.pop("ratio"), mlp.pop("hidden"), mlp.pop("multiple_of")
        mlp["hidden"] = hidden_width(model["dim"], *shape)
    return values


def _letters(pattern: str, layers: int) -> str:
    """What a pattern of windows says of each layer; its last letter is the last layer's."""
    return (pattern * layers)[-layers:]


def shortest_pattern(letters: str) -> str:
    """The shortest pattern of windows that says `letters`, one a layer."""
    ends = (letters[-length:] for length in range(1, len(letters)))
    return next((end for end in ends if _letters(end, len(letters)) == letters), letters)


def neutral_tensor(name: str, like: Tensor) -> Tensor:
    """What a part does that is not there: a bias of zeros, a gain of ones."""
    return torch.zeros_like(like) if name.endswith("bias") else torch.ones_like(like)
