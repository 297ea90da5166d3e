"""Compare the settings of finished runs by their mean score over seeds.

The score is the value of the model's objective, such as the loss on held-out images, or that on the
training images if none are held out. Its direction says whether lower or higher is better. The
spread is the standard deviation over seeds. Test metrics are reported but never used to choose. A
table of runs has one row per run, with its settings in the columns `config.<key>` (see
`table.collect`).

Welch's t-test decides whether the best and the worst of K settings differ. It allows each setting
its own spread: with m and s the mean and the standard deviation over n seeds,

    t = |m_worst - m_best| / sqrt(a + b),   a = s_best^2 / n_best,   b = s_worst^2 / n_worst   (1)
    df = (a + b)^2 / (a^2 / (n_best - 1) + b^2 / (n_worst - 1))                                (2)

(Welch, 1947). Its p-value is wrong here for two reasons: (2) is an approximation that is poor for
two or three seeds, and the two settings are selected as the extremes of K. A parametric bootstrap
corrects both (Krishnamoorthy, Lu and Mathew, 2007; for a p-value: Beran, 1988): it draws K equal
settings with these spreads many times, and the corrected p-value is the share of draws whose
extremes have a p-value as small as the observed one.

In 10,000 simulated cases each, the test called 2, 3 or 5 equal settings with 2, 3 or 5 seeds
different in 3.6 to 5.6 % of the cases; with 3 and 5 seeds also if one setting is ten times noisier
than the others. Tukey's range test, which assumes equal spreads, called 10 to 17 % of the latter
different. The test of Games and Howell (1976) called 2 to 4 % of all cases different, because it
corrects for every pair, even if one noisy setting is always an extreme. The test is less exact for
ten and twenty settings (7 and 7.6 %), for two settings with two seeds if one is ten times noisier
(7.6 %), and for a setting with two seeds against one with five or ten (7 to 11 %); therefore
`select_shared_seeds` uses the same seeds for all settings if it can.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtr

from digitlab.formatting import format_spread
from digitlab.runs.provenance import DATA_PLACE
from digitlab.runs.results import LOSS, Objective

NOT_SETTINGS = ("seed", *DATA_PLACE)
# The accepted share of equal settings that are called different.
SIGNIFICANCE_LEVEL = 0.05
# The standard error of a p-value of 0.05 is then 0.002.
DRAWS = 10_000
REMEDY = "(add seed=0,1,2)"


def short_name(column: str) -> str:
    """Return the configuration key of a column; for a choice, its group as on the command line."""
    key = column.removeprefix("config.")
    stem, _, last = key.rpartition(".")
    return stem.rpartition(".")[2] if last == "name" else key


def most_common(values: pd.Series) -> Any:
    """Return the most common value, the last one in case of a tie; None if there are no values."""
    counts = values.value_counts()
    return next((value for value in reversed(list(values)) if counts[value] == counts.max()), None)


def shared_objective(runs: pd.DataFrame) -> Objective:
    """Return the objective of runs that are compared, which is the same for all of them."""
    first = runs.iloc[0]
    return Objective(first.score_name, first.direction)


def mean_scores(runs: pd.DataFrame) -> pd.Series:
    """The mean score of each setting, best first; of a search, confirmed settings before others."""
    groups = runs.groupby("setting")
    means = groups.score.mean().sort_values(key=shared_objective(runs).cost)
    if "is_confirmed" not in runs:
        return means
    confirmed = groups.is_confirmed.first()
    return means[sorted(means.index, key=lambda setting: not confirmed[setting])]


def split_by_objective(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Split runs whose models have different objectives; without such, return the whole table.

    Of the runs that have not completed, those whose objective is unknown are left out of a split.
    """
    measures = pd.Series("", table.index)
    for index, run in table[table.direction.notna()].iterrows():
        measures[index] = f"{run.direction} {Objective(run.score_name, run.direction).measure}"
    completed = measures[table.status == "completed"].unique()
    if len(completed) < 2:
        return [table]
    return [table[measures == measure] for measure in completed]


def select_comparable(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Select the completed runs whose scores can be compared.

    The runs have one measure. It cannot be compared on different images: neither on different data
    sets, nor on training images with held-out images, nor on different numbers of images.

    Returns:
        The runs, and one sentence for each reason to exclude others.
    """
    completed = table[table.status == "completed"]
    same_data = completed[completed.data == most_common(completed.data)]
    same_score = same_data[same_data.score_name.astype(str).str.startswith("val/")]
    size = "config.data.val_size"
    if not len(same_score):
        names = same_data.score_name.astype(str)
        part = "test" if names.str.startswith("test/").any() else "train"
        same_score, size = same_data, f"config.data.{part}_size"
    sizes = same_score.get(size, pd.Series("", same_score.index)).fillna("")
    same_size = same_score[sizes == most_common(sizes)]
    notes = []
    for selected, candidates, reason in (
        (same_data, completed, "use other data"),
        (same_score, same_data, "have no held-out images"),
        (same_size, same_score, f"use another {short_name(size)}"),
    ):
        excluded = len(candidates) - len(selected)
        if excluded:
            other = "other " * (len(candidates) < len(completed))
            count = f"{excluded} of {len(candidates)} {other}completed runs"
            notes.append(f"{count} {reason}: listed in runs.csv, not compared.")
    return same_size, notes


def find_varied_settings(table: pd.DataFrame) -> list[str]:
    """Return the columns of the settings that differ between runs.

    A setting that only some runs have counts only if no other setting distinguishes them from the
    other runs with the same seed. Jobs that have not started have no settings and are ignored, as
    are debug runs unless there are no others.
    """
    names = [
        name
        for name in table
        if name.startswith("config.") and short_name(name) not in NOT_SETTINGS
    ]
    table = table.dropna(subset=names, how="all")
    results = table[table.debug == ""]
    table = results if len(results) else table
    varied = [name for name in names if table[name].nunique() > 1]
    identical = table[table.duplicated([*varied, "seed"], keep=False)]
    for _, group in identical.groupby([*varied, "seed"], dropna=False):
        varied += [
            name for name in names if name not in varied and group[name].nunique(dropna=False) > 1
        ]
    return [name for name in names if name in varied]


def average_baselines(runs: pd.DataFrame) -> dict[str, float]:
    """Return the mean test value of each baseline.

    Baselines that differ between the runs are left out, such as PCA with several latent sizes.
    """
    means = {}
    for name in runs:
        if not name.startswith("baseline/") or runs[name].isna().all():
            continue
        low, high = runs[name].min(), runs[name].max()
        if high - low <= 0.05 * abs(low):
            means[name.removeprefix("baseline/").replace("_", " ")] = float(runs[name].mean())
    return means


def child_settings(key: str, settings: list[str]) -> list[str]:
    """Return the settings of a choice: for `optimizer.name`, the others of `optimizer`."""
    stem, dot, last = key.rpartition(".")
    if last != "name":
        return []
    return [name for name in settings if name != key and name.startswith(stem + dot)]


def select_best_setting(runs: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Select the setting with the most seeds and, among those, the best mean score."""
    groups = [group for _, group in runs.groupby(keys, dropna=False)]
    cost = shared_objective(runs).cost
    return min(groups, key=lambda group: (-group.seed.nunique(), cost(group.score.mean())))


def select_shared_seeds(runs: pd.DataFrame, key: str) -> pd.DataFrame:
    """Select the runs for a fair comparison of the values of a setting: those with shared seeds.

    If two or more values have several seeds, they must share at least two, and a value with a
    single seed keeps its run. If there are no such seeds, all runs are used.
    """
    seeds = {value: set(group.seed) for value, group in runs.groupby(key)}
    repeated = {value: own for value, own in seeds.items() if len(own) > 1}
    if len(repeated) > 1:
        common = set.intersection(*repeated.values())
        if len(common) < 2:
            return runs
        return runs[runs.seed.isin(common) | ~runs[key].isin(repeated)]
    common = set.intersection(*seeds.values())
    return runs[runs.seed.isin(common)] if common else runs


class Comparison(NamedTuple):
    """The effect of one setting."""

    # By the other settings: mean, spread and number of seeds at each value.
    lines: dict[str, pd.DataFrame]
    # The runs that are compared.
    runs: pd.DataFrame
    # The settings that are equal in all lines, though not in all runs.
    fixed: str
    # The settings that are tuned separately for each value.
    tuned: list[str]


def compare(runs: pd.DataFrame, key: str, settings: list[str]) -> Comparison:
    """Compare the values of one setting with the others fixed, over the seeds that they share.

    A choice is compared at the best of its own settings. If the values share no seeds, all count.
    """
    own = child_settings(key, settings)
    others = [name for name in settings if name not in (key, *own)]
    lines, compared, tuned = [], [], set()
    for _, group in runs.groupby(others, dropna=False) if others else [("", runs)]:
        if group[key].nunique() < 2:
            continue
        fair = select_shared_seeds(group, key)
        if own:
            options = fair.groupby(key)
            tuned |= {name for name in own if options[name].nunique(dropna=False).max() > 1}
            best = pd.concat([select_best_setting(part, own) for _, part in options])
            fair = select_shared_seeds(best, key)
        first = group[others].iloc[0].dropna()
        words = [f"{short_name(name)}={value}" for name, value in first.items()]
        values = fair.groupby(key).score.agg(["mean", "std", "count"])
        lines.append((words, values.loc[sorted(values.index, key=sort_key)]))
        compared.append(fair)
    if not lines:
        return Comparison({}, runs.head(0), "", [])
    lines.sort(key=lambda line: [sort_key(word.partition("=")[2]) for word in line[0]])
    fixed = [word for word in lines[0][0] if all(word in words for words, _ in lines)]
    by_others = {
        " ".join(word for word in words if word not in fixed): values for words, values in lines
    }
    return Comparison(by_others, pd.concat(compared), " ".join(fixed), sorted(tuned))


def sort_key(value: str) -> tuple[int, float, str]:
    """Order numbers by size, then words by name; lists of numbers by length, then as words."""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, value.count(","), value


class Verdict(NamedTuple):
    """Whether the best and the worst of several settings differ significantly."""

    best: Any
    worst: Any
    # NaN if one of the two has a single seed.
    p_value: float
    # Completes the sentence "the difference is ...".
    words: str
    # The settings with a single seed, which are not compared.
    excluded: list[Any]

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant at `SIGNIFICANCE_LEVEL`."""
        return self.p_value <= SIGNIFICANCE_LEVEL


def compare_extremes(values: pd.DataFrame, objective: Objective = LOSS) -> Verdict:
    """Compare the best and the worst of two or more settings.

    The spread of a setting with one seed is unknown and is not estimated from others: the setting
    is excluded if at least two others have several seeds.

    Args:
        values: One row per setting: `mean` and `std` of its scores, `count` of its seeds.
        objective: Its direction says which of the means is the best.
    """
    repeated = values[values["count"] > 1]
    compared = repeated if len(repeated) > 1 else values
    costs = objective.cost(compared["mean"])
    best, worst = costs.idxmin(), costs.idxmax()
    excluded = [value for value in values.index if value not in compared.index]
    extremes = values.loc[[best, worst]]
    low, high = sorted(extremes["mean"])
    # Means of the same scores differ by rounding.
    if math.isclose(low, high, rel_tol=1e-9):
        return Verdict(best, worst, 1.0, "none", excluded)
    gap = format_spread(high - low)
    if extremes["count"].min() < 2:
        return Verdict(best, worst, math.nan, f"{gap}, {explain_untested(extremes)}", excluded)
    p_value = bootstrap_p_value(compared)
    rounded = f"p = {p_value:.2g}" if p_value >= 0.001 else "p < 0.001"
    spreads = " and ".join(map(format_spread, extremes["std"]))
    result = "significant" if p_value <= SIGNIFICANCE_LEVEL else "not significant"
    words = f"{gap}, {result} ({rounded}; spread over seeds {spreads})"
    return Verdict(best, worst, p_value, words, excluded)


def explain_untested(extremes: pd.DataFrame) -> str:
    """Explain that one setting or both have a single seed."""
    single = extremes.index[extremes["count"] < 2]
    subject = "each" if len(single) == 2 else single[0]
    return f"not tested: {subject} has a single seed {REMEDY}"


def bootstrap_p_value(values: pd.DataFrame) -> float:
    """Return the corrected p-value of the extremes of settings with several seeds each."""
    seeds = values["count"].to_numpy()
    variances = values["std"].to_numpy() ** 2 / seeds
    # A fixed seed gives the same runs the same p-value each time.
    rng = np.random.default_rng(0)
    return float(corrected_p_value(values["mean"].to_numpy(), variances, seeds - 1, rng))


def corrected_p_value(
    means: np.ndarray, variances: np.ndarray, dof: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return how often equal settings with these spreads have extremes so clearly apart, (...).

    This is the corrected p-value of the module's header.

    Args:
        means: Means of the K settings, (..., K).
        variances: Variances of these means, each estimated with its degrees of freedom, (..., K).
        dof: Degrees of freedom, the number of seeds minus one, (K,).
        rng: Generator for the draws of equal settings.
    """
    size = DRAWS, len(dof)
    normal = rng.normal(size=size)
    factors = rng.chisquare(dof, size) / dof
    known = variances[..., None, :]  # (..., 1, K)
    drawn = extremes_p_value(normal * np.sqrt(known), factors * known, dof)  # (..., DRAWS)
    observed = extremes_p_value(means, variances, dof)
    p_values: np.ndarray = (drawn <= observed[..., None]).mean(-1)
    return p_values


def extremes_p_value(means: np.ndarray, variances: np.ndarray, dof: np.ndarray) -> np.ndarray:
    """Return Welch's two-sided p-value of the smallest and the largest of K means, (...)."""
    extremes = np.stack([means.argmin(-1), means.argmax(-1)], -1)  # (..., 2)
    gap = np.diff(np.take_along_axis(means, extremes, -1))[..., 0]
    both = np.take_along_axis(variances, extremes, -1)
    total = both.sum(-1)
    # Without any spread t is x / 0 or 0 / 0: such settings differ if their means differ at all.
    with np.errstate(divide="ignore", invalid="ignore"):
        df = 1 / ((both / total[..., None]) ** 2 / dof[extremes]).sum(-1)  # (2)
        p_values: np.ndarray = 2 * stdtr(df, -gap / np.sqrt(total))  # (1)
    return np.where(total > 0, p_values, gap == 0)
