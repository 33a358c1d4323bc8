"""The keyed shuffle: a bijection for every size, different for every key, and without visible order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.permutation import hash64, permute


@given(n=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_every_number_comes_out_once(n: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@given(n=st.integers(1, 2**62), key=st.integers(0, 2**64 - 1), data=st.data())
@settings(max_examples=60, deadline=None)
def test_one_position_alone_goes_where_it_goes_in_company(n: int, key: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True)))
    together = permute(index, n, key)
    assert [int(permute(index[i : i + 1], n, key)[0]) for i in range(len(index))] == together.tolist()
    assert len(set(together.tolist())) == len(index)
    assert (together >= 0).all()
    assert (together < n).all()


def test_it_looks_random() -> None:
    n = 100_000
    order = permute(np.arange(n), n, 1)
    correlation = np.corrcoef(np.arange(n), order)[0, 1]
    neighbours = np.corrcoef(order[:-1], order[1:])[0, 1]
    assert abs(correlation) < 0.02  # six standard deviations
    assert abs(neighbours) < 0.02
    # Each tenth of the input is spread over all tenths of the output: chi-squared with 81 degrees of freedom.
    counts = np.histogram2d(np.arange(n), order, bins=10)[0]
    assert ((counts - n / 100) ** 2 / (n / 100)).sum() < 160
    assert 0 <= (order == np.arange(n)).sum() < 12  # fixed points: Poisson with mean 1


def test_small_domains_reach_many_orders() -> None:
    orders = {tuple(permute(np.arange(5), 5, key).tolist()) for key in range(1500)}
    assert len(orders) == 120


def test_keys_and_hashes_matter() -> None:
    n = 1000
    assert (permute(np.arange(n), n, 1) == permute(np.arange(n), n, 2)).sum() < 20
    assert len({hash64(a, b) for a in range(50) for b in range(50)}) == 2500
    assert hash64(1, 2) != hash64(2, 1)


def test_the_shuffle_never_changes() -> None:
    """Runs are compared across versions: this order is a promise."""
    assert permute(np.arange(8), 8, 42).tolist() == GOLDEN


GOLDEN = [5, 0, 6, 3, 1, 7, 2, 4]


@pytest.mark.parametrize("n", [0, -1, 2**62 + 1])
def test_impossible_domains_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="domain"):
        permute(np.arange(1), n, 0)
