"""How many test actions it takes to show a difference between two runs: power analysis. Imports no torch.

Two correlations with the same judged scores: the test statistic of Dunn and Clark (JASA 1969) with the pooled covariance of
Steiger ("Tests for comparing elements of a correlation matrix", Psychological Bulletin 1980), planned as in G*Power (Faul,
Erdfelder, Buchner and Lang, "Statistical power analyses using G*Power 3.1", Behavior Research Methods 2009). Rank correlations
vary more than Pearson's: factor of Bonett and Wright (Psychometrika 2000). Two accuracies: McNemar's test (Connor, "Sample size
for testing differences in proportions for the paired-sample design", Biometrics 1987).
"""

from __future__ import annotations

import math
from statistics import NormalDist

ALPHA, POWER = 0.05, 0.8


def _quantiles(alpha: float, power: float) -> tuple[float, float]:
    """Quantiles of the normal distribution for a two-sided test at level `alpha` and for the power."""
    return NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)


def _fisher_covariance(a: float, b: float, between: float) -> float:
    """The covariance, times N - 3, of the Fisher transforms of two correlations `a` and `b` with one variable; `between` is the
    correlation of the other two variables."""
    covariance = between * (1 - a**2 - b**2) - a * b * (1 - a**2 - b**2 - between**2) / 2
    return covariance / ((1 - a**2) * (1 - b**2))


def actions_for_correlations(
    a: float, b: float, between: float, *, rank: bool = True, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """The number of test actions with which a paired test finds the difference of two correlations with the judged scores.

    Args:
        a, b: the correlations of the predictions of two runs with the judged scores.
        between: the correlation of the predictions of the two runs with each other.
        rank: Spearman's correlations; False: Pearson's.
        alpha, power: level of the two-sided test; the probability to find the difference.

    Returns None where no number is enough or the three correlations are impossible together: a = b, or one of them is 1.
    """
    determinant = 1 - a**2 - b**2 - between**2 + 2 * a * b * between
    if a == b or not determinant > 0 or max(abs(a), abs(b), abs(between)) >= 1:  # also NaN
        return None
    z_alpha, z_power = _quantiles(alpha, power)
    mean = (a + b) / 2
    by_chance = math.sqrt(2 - 2 * _fisher_covariance(mean, mean, between))
    true = math.sqrt(2 - 2 * _fisher_covariance(a, b, between))
    difference = abs(math.atanh(a) - math.atanh(b))
    spread = 1 + mean**2 / 2 if rank else 1.0
    return math.ceil(((z_alpha * by_chance + z_power * true) / difference) ** 2 * spread + 3)


def actions_for_accuracies(only_a: float, only_b: float, *, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """The number of test actions with which McNemar's test finds the difference of two accuracies.

    `only_a` and `only_b` are the shares of the actions that only one of the two runs classifies correctly. Returns None where
    they are equal.
    """
    difference, differing = abs(only_a - only_b), only_a + only_b
    if difference == 0:
        return None
    z_alpha, z_power = _quantiles(alpha, power)
    spread = z_alpha * math.sqrt(differing) + z_power * math.sqrt(max(differing - difference**2, 0))
    return math.ceil((spread / difference) ** 2)


def about(actions: int | None) -> str:
    """A number of actions as text, rounded up to two digits: it is no more exact. 'no number' for None."""
    if actions is None:
        return "no number"
    unit = 10 ** max(len(str(actions)) - 2, 0)
    return f"{-(-actions // unit) * unit:,}"
