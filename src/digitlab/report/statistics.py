"""What settings did, by their runs: compared by the mean over seeds of what a search minimises.

That is the loss on held-out images (where none are held out, on the training images); the spread is the standard
deviation over seeds. Test figures only stand beside. A table of runs has a row a run, its settings in columns
`config.<key>`, as table.collect makes it.

Whether the best and the worst of K settings differ, or may be equal, is decided by Welch's t. It
lets each setting have its own spread: with m and s the mean and the deviation over n seeds,

    t = (m_worst - m_best) / sqrt(a + b),   a = s_best^2 / n_best,   b = s_worst^2 / n_worst   (1)
    df = (a + b)^2 / (a^2 / (n_best - 1) + b^2 / (n_worst - 1))                                (2)

(Welch, 1947). Two things are wrong with its p-value here: (2) is an approximation that is poor for
two or three seeds, and the two settings were picked as the extremes of K. A parametric bootstrap
corrects both (Krishnamoorthy, Lu and Mathew, 2007; of a p-value: Beran, 1988): it draws K equal
settings with these spreads many times, and the corrected p-value is the share of draws whose
extremes have a p-value as small.

In 10,000 simulated cases each, 2, 3 or 5 equal settings of 2, 3 or 5 seeds were called different
in 3.6 to 5.6 %; of 3 and 5 seeds also where one setting is ten times noisier than the others.
Tukey's range, which assumes equal spreads, called 10 to 17 % of the latter different; Games and
Howell's test (1976) 2 to 4 % of all, as it corrects for every pair, also where one noisy setting is
always an extreme. Less exact are ten and twenty settings (7 and 7.6 %), two settings of two seeds
of which one is ten times noisier (7.6 %), and a setting of two seeds beside one of five or ten
(7 to 11 %): `shared` takes the same seeds of all where it can.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtr

from digitlab.formatting import format_spread
from digitlab.runs.provenance import DATA_PLACE

NO_SETTING = ("seed", *DATA_PLACE)
LEVEL = 0.05  # the share of equal settings that may be called different
DRAWS = 10_000  # a p-value of 0.05 is then known to 0.002
REMEDY = "(add seed=0,1,2)"


def bare(column: str) -> str:
    """The configuration's key that a column holds; of a choice its group, as on the command line."""
    key = column.removeprefix("config.")
    stem, _, last = key.rpartition(".")
    return stem.rpartition(".")[2] if last == "name" else key


def commonest(values: pd.Series) -> Any:
    """The value that most have, of several such the last; None where there is none."""
    counts = values.value_counts()
    return next((value for value in reversed(list(values)) if counts[value] == counts.max()), None)


def comparable(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The completed runs that are rivals, and a sentence on those that are none.

    A loss on other images is no rival, nor is one on training images to one on held-out ones, or one on so many of them
    to one on fewer.
    """
    completed = table[table.status == "completed"]
    alike = completed[completed.data == commonest(completed.data)]
    held_out = alike[alike.score_name == "val/loss"]
    held_out = held_out if len(held_out) else alike
    size = (
        "config.data.val_size"
        if held_out.score_name.eq("val/loss").all()
        else "config.data.train_size"
    )
    sizes = held_out.get(size, pd.Series("", held_out.index)).fillna("")
    rivals = held_out[sizes == commonest(sizes)]
    told = []
    for few, many, why in (
        (alike, completed, "are of other data"),
        (held_out, alike, "held no images out"),
        (rivals, held_out, f"are of another {bare(size)}"),
    ):
        if len(few) < len(many):
            left = len(many) - len(few)
            others = "other " * (len(many) < len(completed))
            told.append(
                f"{left} of {len(many)} {others}completed runs {why}: in runs.csv, not compared."
            )
    return rivals, told


def varied(table: pd.DataFrame) -> list[str]:
    """The columns of the settings that are not the same in all runs.

    One that some runs lack counts where nothing else tells them from others of their seed. Jobs that never began have
    no settings, and say nothing.
    """
    names = [name for name in table if name.startswith("config.") and bare(name) not in NO_SETTING]
    table = table.dropna(subset=names, how="all")
    told = [name for name in names if table[name].nunique() > 1]
    alike = table[table.duplicated([*told, "seed"], keep=False)]
    for _, group in alike.groupby([*told, "seed"], dropna=False):
        told += [
            name for name in names if name not in told and group[name].nunique(dropna=False) > 1
        ]
    return [name for name in names if name in told]


def trivial(done: pd.DataFrame) -> dict[str, float]:
    """The test loss of each baseline that is about the same for all these runs: not PCA with several latent sizes."""
    names = [name for name in done if name.startswith("baseline/") and done[name].notna().any()]
    return {
        name.removeprefix("baseline/").replace("_", " "): float(done[name].mean())
        for name in names
        if done[name].max() < 1.05 * done[name].min()
    }


def belonging(key: str, settings: list[str]) -> list[str]:
    """The settings that a choice brings along: to `optimizer.name` all others of `optimizer`."""
    stem, dot, last = key.rpartition(".")
    return [
        name for name in settings if last == "name" and name != key and name.startswith(stem + dot)
    ]


def best_of(done: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The runs with those values of these settings that have the least mean score, of those with the most seeds."""
    groups = [group for _, group in done.groupby(keys, dropna=False)]
    return min(groups, key=lambda group: (-group.seed.nunique(), group.score.mean()))


def shared(done: pd.DataFrame, key: str) -> pd.DataFrame:
    """The runs of a fair comparison of the values of a setting: those of the seeds they share.

    Where two or more values have several seeds, these share at least two, and a value of one seed
    keeps its run beside them. Where there are no such seeds all runs are taken.
    """
    seeds = {value: set(group.seed) for value, group in done.groupby(key)}
    several = {value: own for value, own in seeds.items() if len(own) > 1}
    if len(several) > 1:
        common = set.intersection(*several.values())
        return done[done.seed.isin(common) | ~done[key].isin(several)] if len(common) > 1 else done
    common = set.intersection(*seeds.values())
    return done[done.seed.isin(common)] if common else done


class Comparison(NamedTuple):
    """What one setting did."""

    lines: dict[
        str, pd.DataFrame
    ]  # by setting of the others: mean, spread and number of seeds at each value
    runs: pd.DataFrame  # those compared
    fixed: str  # the settings that are alike in all lines, though not in all runs
    tuned: list[str]  # those of which each value stands with its best


def compare(done: pd.DataFrame, key: str, settings: list[str]) -> Comparison:
    """Hold the others fixed, and compare the values of one setting over the seeds that all of them have.

    A choice stands with the best of its own values. Without seeds in common all count.
    """
    own = belonging(key, settings)
    others = [name for name in settings if name not in (key, *own)]
    found, used, tuned = [], [], set()
    for _, group in done.groupby(others, dropna=False) if others else [("", done)]:
        if group[key].nunique() > 1:
            fair = shared(group, key)
            if own:
                tuned |= {
                    name for name in own if fair.groupby(key)[name].nunique(dropna=False).max() > 1
                }
                fair = shared(pd.concat([best_of(part, own) for _, part in fair.groupby(key)]), key)
            words = [
                f"{bare(name)}={group[name].iloc[0]}"
                for name in others
                if pd.notna(group[name].iloc[0])
            ]
            values = fair.groupby(key).score.agg(["mean", "std", "count"])
            found.append((words, values.loc[sorted(values.index, key=order)]))
            used.append(fair)
    found.sort(key=lambda line: [order(word.partition("=")[2]) for word in line[0]])
    first = found[0][0] if found else []
    alike = [word for word in first if all(word in words for words, _ in found)]
    lines = {
        " ".join(word for word in words if word not in alike): values for words, values in found
    }
    return Comparison(
        lines, pd.concat(used) if used else done.head(0), " ".join(alike), sorted(tuned)
    )


def order(value: str) -> tuple[int, float, str]:
    """Numbers by size before words by name; lists of numbers by length, then as words."""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, value.count(","), value


class Verdict(NamedTuple):
    """Whether the best and the worst of some settings differ by more than chance."""

    best: Any
    worst: Any
    p_value: float  # NaN where one of them has a single seed
    words: str  # after "the difference is"
    left_out: list[Any]  # the settings of a single seed that take no part

    @property
    def is_found(self) -> bool:
        """Whether the difference is more than chance explains."""
        return self.p_value <= LEVEL


def judge(values: pd.DataFrame) -> Verdict:
    """Compare the best and the worst of two or more settings.

    A setting of one seed has no known spread, and borrows none: it takes no part where two others
    have more.

    Args:
        values: A row a setting: `mean` and `std` of its scores, `count` of its seeds.
    """
    several = values[values["count"] > 1]
    compared = several if len(several) > 1 else values
    best, worst = compared["mean"].idxmin(), compared["mean"].idxmax()
    left_out = [value for value in values.index if value not in compared.index]
    extremes = values.loc[[best, worst]]
    low, high = extremes["mean"]
    # Means of the same scores differ by rounding.
    if math.isclose(low, high, rel_tol=1e-9):
        return Verdict(best, worst, 1.0, "none", left_out)
    gap = format_spread(high - low)
    if extremes["count"].min() < 2:
        return Verdict(best, worst, math.nan, f"{gap}{unknown(extremes)}", left_out)
    p_value = chance(compared)
    rounded = f"p = {p_value:.2g}" if p_value >= 0.001 else "p < 0.001"
    spreads = " and ".join(map(format_spread, extremes["std"]))
    what = ", beyond chance" if p_value <= LEVEL else ": it may be chance"
    words = f"{gap}{what} ({rounded}; spread over seeds {spreads})"
    return Verdict(best, worst, p_value, words, left_out)


def unknown(extremes: pd.DataFrame) -> str:
    """Why nothing is known of chance: one setting, or both, has a single seed."""
    single = extremes.index[extremes["count"] < 2]
    if len(single) == 2:
        return f", of one seed each: what chance does is not known {REMEDY}"
    return f": what chance does is not known, as {single[0]} has one seed {REMEDY}"


def chance(values: pd.DataFrame) -> float:
    """The corrected p-value of the best and the worst of settings with several seeds."""
    seeds = values["count"].to_numpy()
    variances = values["std"].to_numpy() ** 2 / seeds
    # The same runs have the same p-value each time.
    rng = np.random.default_rng(0)
    return float(corrected_p_value(values["mean"].to_numpy(), variances, seeds - 1, rng))


def corrected_p_value(
    means: np.ndarray, variances: np.ndarray, freedom: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """How often equal settings with these spreads have a best and a worst so clearly apart, (...).

    The p-value of the module's header.

    Args:
        means: Of K settings, (..., K).
        variances: Of these means, each estimated with its degrees of freedom, (..., K).
        freedom: The seeds beyond the first, (K,).
        rng: Draws the equal settings.
    """
    size = DRAWS, len(freedom)
    normal = rng.normal(size=size)
    factors = rng.chisquare(freedom, size) / freedom
    known = variances[..., None, :]  # (..., 1, K)
    drawn = extremes_p_value(normal * np.sqrt(known), factors * known, freedom)  # (..., DRAWS)
    observed = extremes_p_value(means, variances, freedom)
    p_values: np.ndarray = (drawn <= observed[..., None]).mean(-1)
    return p_values


def extremes_p_value(means: np.ndarray, variances: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """The two-sided p-value of Welch's t between the least and the largest of K means, (...)."""
    extremes = np.stack([means.argmin(-1), means.argmax(-1)], -1)  # (..., 2)
    gap = np.diff(np.take_along_axis(means, extremes, -1))[..., 0]
    both = np.take_along_axis(variances, extremes, -1)
    total = both.sum(-1)
    # Without any spread all of this is 0 / 0: such settings differ if they differ at all.
    with np.errstate(divide="ignore", invalid="ignore"):
        df = 1 / ((both / total[..., None]) ** 2 / freedom[extremes]).sum(-1)  # (2)
        p_values: np.ndarray = 2 * stdtr(df, -gap / np.sqrt(total))  # (1)
    return np.where(total > 0, p_values, gap == 0)
