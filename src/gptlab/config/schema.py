"""What a run is: every field of a config, its type, its default and its meaning.

Two principles decide where a field goes. Batch and duration are in tokens, so that one config means one optimization on
any number of devices. And the sections `system`, `checkpoint` and `log` hold what does not change results: they are
outside the run's hash (`gptlab.config.identity`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from gptlab.config.messages import SlotError, broken_rule
from gptlab.config.numbers import BOUNDS
from gptlab.config.slots import Slot, validate_slot
from gptlab.config.types import Boolean, Integer, Number, Text

PositiveInteger = Annotated[Integer, Field(gt=0)]
TokenCount = Annotated[Integer, Field(gt=0, le=BOUNDS["tokens"])]
BatchTokens = Annotated[Integer, Field(gt=0, le=BOUNDS["batch_tokens"])]
Length = Annotated[Integer, Field(gt=0, le=BOUNDS["sequence_length"])]
SeedNumber = Annotated[Integer, Field(ge=0, le=BOUNDS["seed"])]
NonNegativeInteger = Annotated[Integer, Field(ge=0)]
PositiveNumber = Annotated[Number, Field(gt=0)]


class Section(pydantic.BaseModel):
    """A section of the config: closed (no unknown keys) and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=())


def _slot(kind: str, default: str | None, *prefix: str) -> Any:
    """The type of a field that holds a slot value. `prefix`: the keys above it, for error messages."""

    def check(value: Any) -> Slot | None:
        if value is None and default is None:
            return None
        try:
            return validate_slot(kind, value, default=default)
        except SlotError as error:
            raise SlotError((*prefix, kind, *error.path), error.message) from None

    type_ = Slot if default is not None else Slot | None
    return Annotated[type_, pydantic.BeforeValidator(check), pydantic.WithJsonSchema({"slot": kind})]


if TYPE_CHECKING:
    ModelSlot = Slot
    LossSlot = Slot
    OptimizerSlot = Slot
    ScheduleSlot = Slot
    GrowthSlot = Slot | None
    MixSlot = Slot | None
    StreamSlot = Slot | None
else:
    ModelSlot = _slot("model", "GPT")
    LossSlot = _slot("loss", "CrossEntropy")
    OptimizerSlot = _slot("optimizer", "AdamW")
    ScheduleSlot = _slot("schedule", "Cosine")
    GrowthSlot = _slot("growth", None, "train")
    MixSlot = _slot("mix", None, "data")
    StreamSlot = _slot("stream", None, "data")


def expand_seed(value: Any) -> Any:
    """Expand one number to all three seeds; return anything else as it is."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        return {"init": value, "data": value, "dropout": value}
    return value


class Seed(Section):
    """Random seeds. Write one number for all three, or vary them separately."""

    init: SeedNumber = Field(1, description="seed of the initial weights")
    data: SeedNumber = Field(1, description="seed of the order of the data")
    dropout: SeedNumber = Field(1, description="seed of dropout")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        return expand_seed(value)

    def __str__(self) -> str:
        parts = (self.init, self.data, self.dropout)
        return str(self.init) if len(set(parts)) == 1 else "-".join(map(str, parts))


class Data(Section):
    """Which tokens the run reads."""

    path: Text | None = Field(None, description="a data set made by `gptlab data prepare` (or foreign .bin shards)")
    sources: dict[str, Text] | None = Field(None, description="several data sets by name, for a mixture")
    mix: MixSlot = Field(None, description="how the sources are mixed (slot); needs `sources`")
    stream: StreamSlot = Field(None, description="how batches are made of them (slot); null: BatchStream")
    tokenizer: Text | None = Field(None, description="name or folder; null: the one that the data set carries")
    epochs: PositiveInteger | None = Field(None, description="most passes over the data allowed; null: any number")

    @pydantic.model_validator(mode="after")
    def _path_or_sources(self) -> Data:
        if self.path is not None and self.sources is not None:
            raise broken_rule("`path` and `sources` exclude each other; set one of them to null")
        if self.mix is not None and not self.sources:
            raise broken_rule("`mix` needs `sources`, the data sets to mix, by name")
        if self.sources and len(self.sources) > 1 and self.mix is None:
            raise broken_rule("several `sources` need `mix`, for example {use: Weights, weights: {a: 0.5, b: 0.5}}")
        return self


class Train(Section):
    """Length of the run, batch size, precision."""

    tokens: TokenCount = Field(2_000_000, description="length of the run, in tokens (rounded up to whole batches)")
    batch_tokens: BatchTokens = Field(
        8192, description="tokens of one batch, over all devices: of a step where it does not grow"
    )
    growth: GrowthSlot = Field(
        None, description="how many times batch_tokens a step takes, and when (slot); null: always once"
    )
    sequence_length: Length = Field(256, description="T: tokens of one training sequence")
    gradient_clip: PositiveNumber | None = Field(
        1.0, description="largest norm of the whole gradient; null: no clipping"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="precision of the matrix products; auto: bfloat16 where the hardware is fast at it",
    )
    bad_step: Literal["stop", "skip"] = Field(
        "stop",
        description="what a loss that is not finite, or a spike, does to the run (skip costs a sync a step)",
    )
    spike: PositiveNumber | None = Field(
        2.0, description="a spike: this many nats above the median of the last 50 steps"
    )


class Evaluate(Section):
    """Validation while training."""

    every: NonNegativeInteger = Field(200, description="steps between validations; 0: only at the end")
    at_start: Boolean | None = Field(
        None,
        description="whether to validate before the first step; null: with model.init_from, or with tasks",
    )
    tokens: TokenCount | None = Field(None, description="validation tokens, from the start; null: the whole split")
    sequence_length: Length | None = Field(
        None, description="tokens of a window of validation, so that runs of other lengths compare; null: the run's"
    )
    also: tuple[Literal["perplexity", "accuracy"], ...] = Field(
        (), description="what to log beside the loss: perplexity, and the share of tokens that were the likeliest"
    )
    tasks: tuple[Text, ...] = Field((), description="published benchmarks to run at each validation: [hellaswag]")
    limit: PositiveInteger | None = Field(200, description="questions, or pages, of each task; null: all")
    target: PositiveNumber | None = Field(
        None, description="a validation loss, in nats a token: the run ends where it is reached; null: at its last step"
    )


class Checkpoint(Section):
    """Checkpoints: what a run is resumed from."""

    every: NonNegativeInteger = Field(0, description="steps between checkpoints; 0: by the clock alone")
    minutes: Annotated[Number, Field(ge=0, le=BOUNDS["minutes"])] = Field(
        15.0, description="minutes between checkpoints, beside those of `every`; 0: by steps alone"
    )
    keep: PositiveInteger = Field(2, description="how many of the newest to keep")
    best: Boolean = Field(False, description="also save at each validation and keep the best by validation loss")


class System(Section):
    """Hardware. Nothing here changes results beyond rounding."""

    device: Text = Field("auto", description="auto, cpu, cuda, cuda:1 or mps")
    micro_batch: Literal["auto"] | PositiveInteger = Field(
        "auto", description="sequences a device handles at once; auto: the largest power of two that fits"
    )
    compile: Literal["auto", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | Boolean = Field(
        "auto",
        description="torch.compile; auto: on CUDA; a word: its mode, of which the first two run CUDA graphs",
    )
    threads: Annotated[Integer, Field(gt=0, le=BOUNDS["processes"])] | None = Field(
        None, description="CPU threads; null: torch's own choice"
    )


class Parallel(Section):
    """How a run lies in memory and over the processes that torchrun starts. Nothing here changes results beyond
    rounding."""

    shard: Literal["all"] | PositiveInteger = Field(
        1,
        description="over how many processes parameters, gradients and optimizer state are cut (FSDP); all: over every "
        "one; 1: each has them whole",
    )
    recompute: Literal["none", "selective", "full"] = Field(
        "none",
        description="what a block computes again in the backward pass and does not keep; selective: all but matrix "
        "products and attention; of one process too",
    )
    tensor: PositiveInteger = Field(
        1,
        description="over how many neighbouring processes the heads and hidden units of each layer are cut, which then "
        "share a batch",
    )
    context: PositiveInteger = Field(
        1,
        description="over how many processes each sequence is cut; keys and values are gathered in every layer, and as "
        "many processes fewer share the batch",
    )


class Samples(Section):
    """Texts that the model writes while it is trained, all of one seed: RUN/samples.jsonl, and on the screen."""

    every: NonNegativeInteger = Field(0, description="steps between samples, and after the last one; 0: none")
    prompts: tuple[Text, ...] = Field(("",), min_length=1, description="what to continue; empty: a document begins")
    tokens: PositiveInteger = Field(64, description="tokens of each")
    temperature: Annotated[Number, Field(ge=0)] = Field(0.8, description="of the draw; 0: the likeliest tokens")


class Log(Section):
    """Loggers beside metrics.jsonl and metrics.csv."""

    every: PositiveInteger = Field(1, description="steps between rows of metrics.jsonl")
    samples: Samples = Samples()
    hooks: tuple[Text, ...] = Field(
        (), description="your own loggers: ./file.py:Name or module:Name of a class or function given every row"
    )
    tensorboard: Boolean = Field(False, description="write TensorBoard events to RUN/tensorboard")
    wandb: Literal["off", "offline", "online"] = Field("off", description="Weights & Biases")
    wandb_project: Text = Field("gptlab", description="project name at Weights & Biases")


class RunConfig(Section):
    """A whole run. `gptlab config show` prints one with every default written out."""

    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = Field("run", description="runs/NAME-…")
    seed: Seed = Seed()
    data: Data = Data()
    model: ModelSlot = Field(default="GPT", validate_default=True)
    loss: LossSlot = Field(default="CrossEntropy", validate_default=True)
    optimizer: OptimizerSlot = Field(default="AdamW", validate_default=True)
    schedule: ScheduleSlot = Field(default="Cosine", validate_default=True)
    train: Train = Train()
    eval: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    system: System = System()
    parallel: Parallel = Parallel()
    log: Log = Log()

    @property
    def sequences_per_step(self) -> int:
        """B: sequences of one batch, over all devices."""
        return self.train.batch_tokens // self.train.sequence_length

    @property
    def total_steps(self) -> int:
        """Steps of the run, of one batch each: train.tokens, rounded up to whole batches."""
        return -(-self.train.tokens // self.train.batch_tokens)

    @pydantic.model_validator(mode="after")
    def _batch_is_whole_sequences(self) -> RunConfig:
        train = self.train
        if train.batch_tokens % train.sequence_length:
            lower = max(1, train.batch_tokens // train.sequence_length) * train.sequence_length
            raise broken_rule(
                f"{train.batch_tokens} is not a multiple of train.sequence_length "
                f"({train.sequence_length}); use {lower}",
                key="train.batch_tokens",
            )
        return self

    @property
    def is_validated_at_start(self) -> bool:
        """Whether the run validates before its first step."""
        if self.eval.at_start is not None:
            return self.eval.at_start
        return bool(self.eval.tasks) or self.plain()["model"].get("init_from") is not None

    @property
    def validation_length(self) -> int:
        """Tokens of a window of validation."""
        return self.eval.sequence_length or self.train.sequence_length

    def plain(self) -> dict[str, Any]:
        """As nested dictionaries with every default written out, ready for YAML."""
        values: dict[str, Any] = _plain(self)
        return values


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return {key: _plain(getattr(value, key)) for key in type(value).model_fields}
    if isinstance(value, Slot):
        return value.plain()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


__all__ = [
    "Checkpoint",
    "Data",
    "Evaluate",
    "Log",
    "Parallel",
    "RunConfig",
    "Seed",
    "Slot",
    "System",
    "Train",
]
