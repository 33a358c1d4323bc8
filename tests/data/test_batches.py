"""Batches: a function of (seed, step) alone, every window once an epoch, mixtures that keep their shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data import IGNORE, Batch, BatchStream, TokenDataset, micro_batches, validation_batches
from gptlab.data.batches import GrowingSequences
from gptlab.data.mixture import Schedule, Weights
from gptlab.errors import ConfigError, DataError


def stream(*datasets: TokenDataset, mix: object = None, **given: object) -> BatchStream:
    named = [(f"d{number}", dataset) for number, dataset in enumerate(datasets)]
    options = {"sequence_length": 8, "sequences_per_step": 12, "seed": 1, "total_steps": 50, "epochs": None, **given}
    weights = mix or Weights({name: dataset.tokens for name, dataset in named})
    return BatchStream(named, weights, **options)  # type: ignore[arg-type]


@pytest.fixture
def counting(write_shards) -> TokenDataset:
    """1,000 different ids over three shards: an id tells its position."""
    return TokenDataset.open(write_shards(range(333), range(333, 400), range(400, 1000)), "train")


def test_rows_are_runs_of_the_data_and_targets_come_next(counting: TokenDataset) -> None:
    batch = stream(counting).batch(3)
    assert batch.inputs.shape == batch.targets.shape == batch.documents.shape == (12, 8)
    assert batch.inputs.dtype == batch.targets.dtype == np.int64
    assert batch.documents.dtype == np.int32
    assert (batch.targets == batch.inputs + 1).all()
    assert (np.diff(batch.inputs, axis=1) == 1).all()
    assert batch.global_targets == 96


@pytest.mark.parametrize("world_size", [1, 2, 4, 5])
def test_the_world_size_changes_nothing(counting: TokenDataset, world_size: int) -> None:
    whole = stream(counting).batch(7)
    parts = [stream(counting).batch(7, rank, world_size) for rank in range(world_size)]
    assert np.array_equal(np.concatenate([part.inputs for part in parts]), whole.inputs)
    assert np.array_equal(np.concatenate([part.targets for part in parts]), whole.targets)
    assert {part.global_targets for part in parts} == {whole.global_targets}


@pytest.mark.parametrize("rows", [1, 2, 5, 12, 100])
def test_micro_batches_are_the_batch_in_order(counting: TokenDataset, rows: int) -> None:
    whole = stream(counting).batch(0)
    parts = list(micro_batches(whole, rows))
    assert np.array_equal(np.concatenate([part.inputs for part in parts]), whole.inputs)
    assert all(len(part.inputs) <= rows and part.global_targets == whole.global_targets for part in parts)


def test_a_step_does_not_depend_on_the_steps_before_it(counting: TokenDataset) -> None:
    one, other = stream(counting), stream(counting)
    in_order = [one.batch(step).inputs for step in range(10)]
    for step in (9, 2, 5, 0):
        assert np.array_equal(other.batch(step).inputs, in_order[step])


def test_the_seed_decides(counting: TokenDataset) -> None:
    assert not np.array_equal(stream(counting).batch(0).inputs, stream(counting, seed=2).batch(0).inputs)


def windows_of(stream: BatchStream, steps: range) -> np.ndarray:
    return np.concatenate([stream.batch(step).inputs[:, 0] for step in steps])


def test_every_window_comes_once_an_epoch_in_another_order_and_phase(counting: TokenDataset) -> None:
    N = (1000 - 8) // 8  # 124 windows
    data = stream(counting, sequences_per_step=31)
    epochs = [windows_of(data, range(4 * epoch, 4 * epoch + 4)) for epoch in range(3)]
    phases = set()
    for starts in epochs:
        phase = int(starts.min())
        assert phase < 8
        assert np.array_equal(np.sort(starts), phase + 8 * np.arange(N))
        assert not np.array_equal(starts, np.sort(starts))
        phases.add(phase)
    assert len(phases) > 1
    assert not np.array_equal(np.argsort(epochs[0]), np.argsort(epochs[1]))


def test_an_epoch_ends_in_the_middle_of_a_batch(counting: TokenDataset) -> None:
    starts = windows_of(stream(counting, sequences_per_step=100), range(3))
    first, second = starts[:124], starts[124:248]
    assert len(set(first.tolist())) == len(set(second.tolist())) == 124


@settings(max_examples=25, deadline=None)
@given(T=st.integers(1, 40), tokens=st.integers(2, 300), seed=st.integers(0, 10))
def test_windows_stay_inside_the_data(tmp_path_factory, T: int, tokens: int, seed: int) -> None:
    folder = tmp_path_factory.mktemp("any")
    np.arange(tokens, dtype="<u2").tofile(folder / "train.bin")
    data = TokenDataset.open(folder, "train")
    if tokens < 2 * T:
        with pytest.raises(DataError, match="shorten them or prepare more text"):
            stream(data, sequence_length=T)
        return
    batches = [stream(data, sequence_length=T, seed=seed).batch(step) for step in range(5)]
    assert all((batch.targets - batch.inputs == 1).all() for batch in batches)


def test_epochs_are_counted_and_may_be_forbidden(counting: TokenDataset, capsys: pytest.CaptureFixture[str]) -> None:
    data = stream(counting, total_steps=31)  # 372 rows of 124 windows
    assert data.epochs_needed == {"d0": 3.0}
    assert "3.00 times" in capsys.readouterr().err
    stream(counting, total_steps=31, epochs=3)
    with pytest.raises(DataError, match=r"3\.10 epochs of it and data\.epochs allows 3"):
        stream(counting, total_steps=32, epochs=3)


def test_documents_are_counted_within_the_row(write_shards) -> None:
    ids = [9, 1, 2, 9, 3, 9, 9, 4] * 40
    data = TokenDataset.open(write_shards(ids), "train", end_of_text=9)
    batch = stream(data, sequence_length=13).batch(0)
    for row, documents in zip(batch.inputs.tolist(), batch.documents.tolist(), strict=True):
        number, expected = 0, []
        for position, token in enumerate(row):
            number += position > 0 and token == 9
            expected.append(number)
        assert documents == expected


def test_without_an_end_of_text_id_there_is_one_document(counting: TokenDataset) -> None:
    assert not stream(counting).batch(0).documents.any()


def test_an_id_outside_of_the_vocabulary_names_the_shard(write_shards) -> None:
    folder = write_shards([1] * 100, [1] * 50 + [77] * 50)
    data = TokenDataset.open(folder, "train", vocab_size=50)
    with pytest.raises(DataError, match=r"some_train_000002\.bin: holds token id 77, the vocabulary has 50"):
        stream(data, sequences_per_step=24).batch(0)  # every window


# Mixtures


@pytest.fixture
def two(write_shards) -> tuple[TokenDataset, TokenDataset]:
    """Even ids and odd ids: an id tells its data set."""
    even = write_shards(range(0, 2000, 2), name="even")
    odd = write_shards(range(1, 4001, 2), name="odd")
    return TokenDataset.open(even, "train"), TokenDataset.open(odd, "train")


def weights(a: float, b: float) -> Weights:
    return Weights({"d0": 1000, "d1": 2000}, weights={"d0": a, "d1": b})


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (3, 1), (0.1, 0.9), (0, 1), (1, 0)])
def test_shares_are_kept_all_the_time(two, a: float, b: float) -> None:
    data = stream(*two, mix=weights(a, b), total_steps=200)
    odd = np.concatenate([data.batch(step).inputs[:, 0] % 2 for step in range(200)])
    expected = b / (a + b) * np.arange(1, len(odd) + 1)
    assert np.abs(np.cumsum(odd) - expected).max() < 4  # rows, of 2,400


def test_a_mixture_is_pure_and_reads_each_window_once_an_epoch(two) -> None:
    data = stream(*two, mix=weights(1, 3), total_steps=60)
    again = stream(*two, mix=weights(1, 3), total_steps=60)
    parts = np.concatenate([again.batch(41, rank, 4).inputs for rank in range(4)])
    assert np.array_equal(data.batch(41).inputs, parts)
    starts = np.concatenate([data.batch(step).inputs[:, 0] for step in range(60)])
    even = starts[starts % 2 == 0]
    assert len(set(even[:124].tolist())) == 124  # (1000 - 8) // 8 windows: all of the first epoch
    assert data.epochs_needed["d0"] == pytest.approx(len(even) / 124)


def test_sources_are_named(two) -> None:
    data = stream(*two, mix=weights(1, 1))
    assert data.sources(5) == [f"d{int(row[0] % 2)}" for row in data.batch(5).inputs]


def test_a_schedule_moves_the_shares(two) -> None:
    mix = Schedule(
        {"d0": 1, "d1": 1},
        stages=[{"at": 0.0, "weights": {"d0": 1, "d1": 0}}, {"at": 1.0, "weights": {"d0": 0, "d1": 2}}],
    )
    assert mix(0.25).tolist() == [0.75, 0.25]
    data = stream(*two, mix=mix, total_steps=100)
    odd = [float((data.batch(step).inputs[:, 0] % 2).mean()) for step in range(100)]
    assert sum(odd[:10]) < 1.5
    assert sum(odd[-10:]) > 8.5
    assert 45 < sum(odd) < 55


def test_without_weights_a_source_weighs_what_it_holds() -> None:
    assert Weights({"a": 100, "b": 300})(0.5).tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("given_weights", "message"),
    [
        ({"d0": 1, "d2": 1}, "valid: d0, d1"),
        ({"d0": 1}, "leaves out 'd1'"),
        ({"d0": 0, "d1": 0}, "not all 0"),
        ({"d0": -1, "d1": 2}, "at least 0"),
        ({"d0": float("nan"), "d1": 2}, "at least 0"),
    ],
)
def test_impossible_weights_are_refused(given_weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Weights({"d0": 1, "d1": 1}, weights=given_weights)


def test_impossible_stages_are_refused() -> None:
    stage = {"d0": 1.0}
    for stages in ([], [{"at": 0.5, "weights": stage}, {"at": 0.5, "weights": stage}], [{"at": 2, "weights": stage}]):
        with pytest.raises(ConfigError):
            Schedule({"d0": 1}, stages=stages)  # type: ignore[arg-type]


# Validation


@pytest.mark.parametrize("tokens", [None, 999, 500, 1])
@pytest.mark.parametrize(("T", "rows"), [(8, 5), (64, 3), (999, 1), (2000, 2), (1, 7)])
def test_validation_predicts_each_token_once(counting: TokenDataset, T: int, rows: int, tokens: int | None) -> None:
    batches = list(validation_batches(counting, T, rows, tokens))
    assert {batch.inputs.shape for batch in batches} == {(rows, T)}
    seen = np.concatenate([batch.targets.ravel() for batch in batches])
    assert seen[seen != IGNORE].tolist() == list(range(1, (tokens or 999) + 1))
    assert [batch.global_targets for batch in batches] == [(batch.targets != IGNORE).sum() for batch in batches]
    kept = np.concatenate([batch.inputs.ravel() for batch in batches])[seen != IGNORE]
    assert (kept + 1 == seen[seen != IGNORE]).all()


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_validation_is_shared_between_ranks(counting: TokenDataset, world_size: int) -> None:
    whole = list(validation_batches(counting, 16, 5, None))
    ranks = [list(validation_batches(counting, 16, 5, None, rank, world_size)) for rank in range(world_size)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert np.array_equal(np.concatenate([part.targets for part in parts]), batch.targets)
        assert np.array_equal(np.concatenate([part.inputs for part in parts]), batch.inputs)
        assert {part.global_targets for part in parts} == {batch.global_targets}


@pytest.mark.parametrize("tokens", [0, -1])
def test_no_validation_is_refused(counting: TokenDataset, tokens: int) -> None:
    with pytest.raises(DataError, match="no token to predict"):
        list(validation_batches(counting, 8, 2, tokens))


def test_more_validation_than_there_is_is_all_of_it(counting: TokenDataset) -> None:
    more, every = (list(validation_batches(counting, 8, 2, tokens)) for tokens in (1000, None))
    assert [batch.global_targets for batch in more] == [batch.global_targets for batch in every]
    assert sum(batch.global_targets for batch in more) == 999 == counting.targets()
    assert counting.targets(7) == 7


def test_a_batch_holds_copies_that_may_be_changed(tmp_path: Path, counting: TokenDataset) -> None:
    batch: Batch = stream(counting).batch(0)
    batch.inputs[:] = 0
    assert (batch.targets > 0).any()
    assert (stream(counting).batch(0).inputs > 0).any()


# ---------------------------------------------------------------- sequences that grow


def growing(*datasets: TokenDataset, **given: object) -> GrowingSequences:
    named = [(f"d{number}", dataset) for number, dataset in enumerate(datasets)]
    options = {"sequence_length": 8, "sequences_per_step": 12, "seed": 1, "total_steps": 50, "epochs": None}
    options |= {"start": 2, "every": 200, **given}
    return GrowingSequences(named, Weights({name: dataset.tokens for name, dataset in named}), **options)  # type: ignore[arg-type]


def test_sequences_grow_and_their_tokens_stay(counting: TokenDataset) -> None:
    plain, grown = stream(counting), growing(counting)
    lengths = [grown.batch(step).inputs.shape[1] for step in range(8)]
    assert lengths == [
        2,
        2,
        2,
        4,
        4,
        8,
        8,
        8,
    ]  # 96 tokens a step: 200 are reached within the third, 400 within the fifth
    for step in range(8):
        one, other = plain.batch(step), grown.batch(step)
        assert np.array_equal(one.inputs.ravel(), other.inputs.ravel())
        assert np.array_equal(one.targets.ravel(), other.targets.ravel())
        assert one.global_targets == other.global_targets
        shares = [grown.batch(step, rank, 3).inputs for rank in range(3)]
        assert np.array_equal(np.concatenate(shares), other.inputs)


def test_documents_are_numbered_anew_in_each_piece(write_shards) -> None:
    ids = np.array([0, 1, 2, 0, 3, 4, 5, 6] * 50)
    dataset = TokenDataset.open(write_shards(ids), "train", vocab_size=7, end_of_text=0)
    batch = growing(dataset, start=4).batch(0)
    assert batch.documents.shape == (24, 4)
    assert (batch.documents[:, 0] == 0).all()
    opened = np.cumsum(batch.inputs == 0, axis=1)
    assert np.array_equal(batch.documents, opened - opened[:, :1])
    assert batch.documents.max() == 1


def test_what_never_comes_to_the_whole_sequence_is_refused(counting: TokenDataset) -> None:
    with pytest.raises(ConfigError, match="3 doubled does not come to"):
        growing(counting, start=3)
    with pytest.raises(ConfigError, match="every"):
        growing(counting, every=0)
    assert growing(counting, start=64).batch(0).inputs.shape == (12, 8)


@pytest.mark.parametrize("rows", [1, 3, 5, 12])
def test_micro_batches_of_shorter_rows_hold_as_many_tokens(counting: TokenDataset, rows: int) -> None:
    batch = growing(counting).batch(0)
    parts = list(micro_batches(batch, rows, 8))
    assert np.array_equal(np.concatenate([part.inputs for part in parts]), batch.inputs)
    assert all(len(part.inputs) == 4 * rows for part in parts[:-1])
    assert len(list(micro_batches(stream(counting).batch(0), 1, 2))) == 12  # longer rows: one at least
