"""Win rates of a judge with biases: intervals that cover, corrections that correct, references for what is computed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import expit

from gptlab.errors import GptlabError
from gptlab.lab.stats.crossed import crossed_mean, mean_estimate, share_estimate
from gptlab.lab.stats.preference import preference

JUDGINGS = 500
MANY = 2_000  # coverage is then known to 0.5%, one standard deviation
FIRST, LONGER, TIES = 0.5, 0.8, 0.15
MEAN_LENGTH, SD_LENGTH = 40.0, 100.0  # of B's answers, longer than A's
SCALE = math.hypot(MEAN_LENGTH, SD_LENGTH)


class World:
    """A judge and two arms: B is better by `quality` logits, by another amount on each prompt and for each seed."""

    def __init__(self, quality: float, of_prompt: float, of_seed: float) -> None:
        self.quality, self.of_prompt, self.of_seed = quality, of_prompt, of_seed

    def logits(self, prompts: int, seeds: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(P, S): of the quality alone, and the lengths."""
        luck = rng.normal(0, self.of_prompt, (prompts, 1)) + rng.normal(0, self.of_seed, (1, seeds))
        return self.quality + luck, rng.normal(MEAN_LENGTH, SD_LENGTH, (prompts, seeds))

    def truth(self) -> tuple[float, float, float]:
        """The win rate, that at equal lengths, and the share of what is shown first, over all prompts and seeds."""
        rng = np.random.default_rng(99)
        luck = rng.normal(0, math.hypot(self.of_prompt, self.of_seed), 400_000)
        length = LONGER * np.tanh(rng.normal(MEAN_LENGTH, SD_LENGTH, 400_000) / SCALE)

        def rate(logit: np.ndarray) -> float:
            return float((1 - TIES) * expit(logit).mean() + TIES / 2)

        z = self.quality + luck
        win = (rate(z + length - FIRST) + rate(z + length + FIRST)) / 2
        equal = (rate(z - FIRST) + rate(z + FIRST)) / 2
        return win, equal, (1 - rate(z + length - FIRST) + rate(z + length + FIRST)) / 2

    def judge(self, prompts: int, seeds: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Scores (P, S, 1, 2) and lengths (P, S) of one judging."""
        quality, length = self.logits(prompts, seeds, rng)
        z = quality + LONGER * np.tanh(length / SCALE)
        won = np.stack([rng.random(z.shape) < expit(z + first) for first in (-FIRST, FIRST)], axis=-1)
        scores = np.where(rng.random(won.shape) < TIES, 0.5, won.astype(np.float64))
        return scores[:, :, None], length


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quality", "of_seed", "prompts", "seeds"),
    [(0.4, 0.0, 48, 1), (2.0, 0.0, 48, 1), (0.4, 0.3, 48, 5), (0.2, 0.2, 60, 3)],
)
def test_intervals_cover_the_truth_under_both_biases(quality: float, of_seed: float, prompts: int, seeds: int) -> None:
    world = World(quality, 0.7, of_seed)
    truth = world.truth()
    rng = np.random.default_rng(1)
    covered = np.zeros(3)
    for _ in range(MANY):
        found = preference(*world.judge(prompts, seeds, rng))
        for number, one in enumerate((found.win_rate, found.corrected, found.first_wins)):
            assert one is not None
            assert one.low is not None
            assert one.high is not None
            covered[number] += one.low <= truth[number] <= one.high
    share = covered / MANY
    assert (np.abs(share[:2] - 0.95) <= 0.02).all(), share
    assert share[2] >= 0.93, share


def test_an_interval_that_forgets_the_prompts_would_be_noticed() -> None:
    """Of verdicts as if each were drawn for itself: what the simulation above is able to refuse."""
    world, rng = World(0.4, 2.0, 0.0), np.random.default_rng(2)
    truth, covered = world.truth()[0], 0
    for _ in range(JUDGINGS):
        scores, _ = world.judge(48, 1, rng)
        repeated = np.repeat(scores, 4, axis=2).reshape(-1, 1)  # the same question four times
        found = share_estimate(repeated)
        covered += found.low <= truth <= found.high
    assert covered / JUDGINGS < 0.85


def test_the_plain_rate_is_off_where_the_corrected_one_is_not() -> None:
    """Equally good arms, one of them longer: 500 judgings on average."""
    world, rng = World(0.0, 0.5, 0.0), np.random.default_rng(3)
    found = [preference(*world.judge(48, 1, rng)) for _ in range(JUDGINGS)]
    plain, corrected = (np.mean([getattr(one, name).value for one in found]) for name in ("win_rate", "corrected"))
    assert plain > 0.52
    assert abs(corrected - 0.5) < 0.006


# ---------------------------------------------------------------- judges that are nothing but a bias


def scores_of(wins_first: np.ndarray, wins_second: np.ndarray) -> np.ndarray:
    return np.stack([wins_first, wins_second], axis=-1).astype(np.float64)[:, None, None]


def test_a_judge_that_takes_the_first_prefers_nobody() -> None:
    found = preference(scores_of(np.zeros(40), np.ones(40)), np.arange(40.0)[:, None])
    assert found.win_rate.value == 0.5
    assert found.first_wins.value == 1
    assert found.first_wins.high == 1
    assert found.first_wins.low is not None
    assert 0.85 < found.first_wins.low < 1
    assert found.orders_agree.value == 0


def test_a_judge_that_takes_the_longer_prefers_nobody_at_equal_lengths() -> None:
    length = np.concatenate([np.linspace(5, 90, 30), -np.linspace(5, 90, 10)])
    longer = length > 0
    found = preference(scores_of(longer, longer), length[:, None])
    assert found.win_rate.value == 0.75
    assert found.corrected is not None
    assert abs(found.corrected.value - 0.5) < 0.15
    assert found.longer_wins is not None
    assert found.longer_wins.value > 0.95


@pytest.mark.parametrize("length", [np.zeros((20, 1)), np.full((20, 1), 7.0)])
def test_without_two_lengths_nothing_is_corrected(length: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    found = preference(scores_of(rng.random(20) < 0.5, rng.random(20) < 0.5), length)
    assert found.corrected is None
    assert found.longer_wins is None


def test_one_who_always_wins_has_an_interval_and_no_correction() -> None:
    found = preference(scores_of(np.ones(30), np.ones(30)), np.arange(30.0)[:, None])
    assert (found.win_rate.value, found.win_rate.high, found.corrected) == (1, 1, None)
    assert found.win_rate.low is not None
    assert 0.8 < found.win_rate.low < 0.95


def test_counts_agreement_and_what_is_missing() -> None:
    scores = np.array([[[[1, 1], [1, 0]]], [[[0.5, 0], [0.5, 0]]], [[[1, np.nan], [0, 0]]], [[[np.nan] * 2] * 2]])
    found = preference(scores, np.array([[3.0], [-2], [1], [5]]))
    assert (found.pairs, found.left_out) == (5, 1)
    assert (found.wins, found.ties, found.losses) == (3, 2, 5)
    assert found.win_rate.value == pytest.approx(np.mean([0.75, 0.25, 0]))  # a prompt is a prompt, however often asked
    assert found.orders_agree.value == pytest.approx(np.mean([0.5, 0, 1]))
    assert found.repeats_agree is not None
    assert found.repeats_agree.value == pytest.approx(np.mean([0.5, 1]))


def test_one_prompt_has_a_rate_and_no_interval() -> None:
    found = preference(scores_of(np.ones(1), np.zeros(1)), np.zeros((1, 1)))
    assert (found.win_rate.value, found.win_rate.low, found.corrected) == (0.5, None, None)


def test_nothing_whole_is_refused() -> None:
    with pytest.raises(GptlabError, match="in both orders"):
        preference(np.array([[[[1.0, np.nan]]]]), np.zeros((1, 1)))


def test_few_and_odd_verdicts_have_shares_inside_their_intervals() -> None:
    """Handfuls of verdicts, some missing, some that lengths tell apart wholly: no error, nothing outside of 0 to 1."""
    rng = np.random.default_rng(7)
    for _ in range(600):
        prompts, seeds, repeats = rng.integers(1, 8), rng.integers(1, 4), rng.integers(1, 3)
        scores = rng.choice([0, 0.5, 1], (prompts, seeds, repeats, 2), p=rng.dirichlet([0.5] * 3))
        scores[rng.random(scores.shape) < rng.choice([0, 0.2])] = np.nan
        if np.isnan(scores).any(axis=-1).all():
            continue
        length = np.round(rng.normal(0, rng.choice([0, 1, 100]), (prompts, seeds)))
        if rng.random() < 0.3:
            length = 50 * np.sign(np.nan_to_num(scores.mean(axis=(2, 3)), nan=0.5) - 0.5)
        found = preference(scores, length)
        for name in ("win_rate", "corrected", "first_wins", "longer_wins", "orders_agree", "repeats_agree"):
            one = getattr(found, name)
            if one is not None and one.low is not None:
                assert 0 <= one.low <= one.value + 1e-12, (name, one)
                assert one.value - 1e-12 <= one.high <= 1, (name, one)


# ---------------------------------------------------------------- references


def test_one_seed_is_the_t_interval_of_prompts() -> None:
    y = np.random.default_rng(0).normal(5, 2, 12)
    wanted = stats.ttest_1samp(y, 0.0).confidence_interval(0.95)
    found = mean_estimate(y[:, None])
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_tosses_of_a_coin_have_wilsons_interval() -> None:
    y = np.array([1.0] * 130 + [0.0] * 270)
    wanted = stats.binomtest(130, 400).proportion_ci(method="wilson")
    found = share_estimate(y[:, None])
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=5e-4)


def test_the_variance_is_that_of_means_over_other_prompts_and_seeds() -> None:
    rng = np.random.default_rng(4)
    prompts, seeds, means, variances = 30, 4, [], []
    for _ in range(4000):
        y = rng.normal(0, 1, (prompts, 1)) + rng.normal(0, 0.5, (1, seeds)) + rng.normal(0, 1, (prompts, seeds))
        found = crossed_mean(y)
        means.append(found.mean)
        variances.append(found.variance)
    truth = 1 / prompts + 0.25 / seeds + 1 / (prompts * seeds)
    assert np.var(means) == pytest.approx(truth, rel=0.06)
    assert np.mean(variances) == pytest.approx(truth, rel=0.06)


def test_missing_numbers_change_little_and_all_there_nothing() -> None:
    rng = np.random.default_rng(5)
    y = rng.normal(0, 1, (40, 1)) + rng.normal(0, 1, (1, 5)) + rng.normal(0, 1, (40, 5))
    whole = crossed_mean(y)
    holes = np.where(rng.random(y.shape) < 0.02, np.nan, y)
    found = crossed_mean(np.vstack([holes, np.full((1, 5), np.nan)]))
    assert (found.prompts, found.seeds) == (40, 5)
    assert whole.variance is not None
    assert found.variance == pytest.approx(whole.variance, rel=0.1)
    assert found.freedom == pytest.approx(whole.freedom, rel=0.1)


def test_the_fit_is_the_one_of_a_plain_minimizer() -> None:
    rng = np.random.default_rng(6)
    length = rng.normal(30, 80, 60)
    y = np.clip(np.round(2 * expit(0.3 + np.tanh(length / 85) + rng.normal(0, 1, 60))) / 2, 0, 1)
    x = np.tanh(length / math.sqrt(np.mean(length**2)))

    def loss(beta: np.ndarray) -> float:
        z = beta[0] + beta[1] * x
        return float((np.logaddexp(0, z) - y * z).sum() + beta[1] ** 2 / 50)

    wanted = optimize.minimize(loss, np.zeros(2), tol=1e-12).x
    found = preference(scores_of(y, y), length[:, None])
    assert found.corrected is not None
    assert found.longer_wins is not None
    assert found.corrected.value == pytest.approx(expit(wanted[0]), abs=1e-5)
    assert found.longer_wins.value == pytest.approx(expit(math.tanh(1) * wanted[1]), abs=1e-5)


@pytest.mark.parametrize("values", [np.full((3, 2), np.nan), np.zeros(3), np.array([[np.inf, 1.0]])])
def test_what_has_no_mean_is_refused(values: np.ndarray) -> None:
    with pytest.raises(GptlabError, match="prompts by seeds"):
        crossed_mean(values)
