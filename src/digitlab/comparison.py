"""What settings did, by their runs: compared by the mean over seeds of what a search minimises.

That is the loss on held-out images (where none are held out, on the training images); the spread is the standard
deviation over seeds. Test figures only stand beside. A table of runs has a row a run, its settings in columns
`config.<key>`, as table.collect makes it.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import pandas as pd

from digitlab.runs import DATA_PLACE

NO_SETTING = ("seed", *DATA_PLACE)


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
    size = "config.data.val_size" if held_out.score_name.eq("val/loss").all() else "config.data.train_size"
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
            told.append(f"{left} of {len(many)} {others}completed runs {why}: in runs.csv, not compared.")
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
        told += [name for name in names if name not in told and group[name].nunique(dropna=False) > 1]
    return [name for name in names if name in told]


def trivial(done: pd.DataFrame) -> dict[str, float]:
    """The test loss of each baseline that is about the same for all these runs: not PCA with several latent sizes."""
    names = [name for name in done if name.startswith("baseline/") and done[name].notna().any()]
    return {
        name.removeprefix("baseline/").replace("_", " "): float(done[name].mean())
        for name in names
        if done[name].max() < 1.05 * done[name].min()
    }


class Spread(NamedTuple):
    """A standard deviation over seeds."""

    deviation: float  # NaN where no setting has two seeds
    freedom: int  # seeds beyond the first of each setting: how well it is known


def pooled(variances: pd.Series, seeds: pd.Series) -> Spread:
    """The spread of several settings, of which each has a variance over so many seeds."""
    freedom = seeds - 1
    total = int(freedom.sum())
    return Spread(float((variances.fillna(0) * freedom).sum() / total) ** 0.5 if total else math.nan, total)


def spread(done: pd.DataFrame) -> Spread:
    """The spread over seeds, pooled over the settings that were run with several."""
    scores = done.groupby("setting").score
    return pooled(scores.var(), scores.count())


def belonging(key: str, settings: list[str]) -> list[str]:
    """The settings that a choice brings along: to `optimizer.name` all others of `optimizer`."""
    stem, dot, last = key.rpartition(".")
    return [name for name in settings if last == "name" and name != key and name.startswith(stem + dot)]


def best_of(done: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The runs with those values of these settings that have the least mean score, of those with the most seeds."""
    groups = [group for _, group in done.groupby(keys, dropna=False)]
    return min(groups, key=lambda group: (-group.seed.nunique(), group.score.mean()))


def shared(done: pd.DataFrame, key: str) -> pd.DataFrame:
    """The runs of those seeds that all values of a setting have; all runs where there is no such seed."""
    seeds = set.intersection(*(set(group.seed) for _, group in done.groupby(key)))
    return done[done.seed.isin(seeds)] if seeds else done


class Comparison(NamedTuple):
    """What one setting did."""

    lines: dict[str, pd.DataFrame]  # by setting of the others: mean, spread and number of seeds at each value
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
                tuned |= {name for name in own if fair.groupby(key)[name].nunique(dropna=False).max() > 1}
                fair = shared(pd.concat([best_of(part, own) for _, part in fair.groupby(key)]), key)
            words = [f"{bare(name)}={group[name].iloc[0]}" for name in others if pd.notna(group[name].iloc[0])]
            values = fair.groupby(key).score.agg(["mean", "std", "count"])
            found.append((words, values.loc[sorted(values.index, key=order)]))
            used.append(fair)
    found.sort(key=lambda line: [order(word.partition("=")[2]) for word in line[0]])
    first = found[0][0] if found else []
    alike = [word for word in first if all(word in words for words, _ in found)]
    lines = {" ".join(word for word in words if word not in alike): values for words, values in found}
    return Comparison(lines, pd.concat(used) if used else done.head(0), " ".join(alike), sorted(tuned))


def order(value: str) -> tuple[int, float, str]:
    """Numbers by size before words by name; lists of numbers by length, then as words."""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, value.count(","), value


def effective(seeds: pd.Series) -> float:
    """The n for which sqrt(2/n) is sqrt(1/a + 1/b), of two means over a and b seeds."""
    return float(2 / (1 / seeds).sum())


@cache
def least(settings: int, freedom: int) -> float:
    """How many deviations of a difference apart the best and the worst of so many equal settings are, at 5 % by chance.

    By Tukey's studentized range (Tukey, 1949; Kramer, 1956), of two settings Student's t; the deviation of a single
    mean is known by so many degrees of freedom.
    """
    from scipy.stats import studentized_range  # takes most of a second

    return float(studentized_range.ppf(0.95, settings, freedom)) / math.sqrt(2)


def beside_chance(gap: float, here: Spread, elsewhere: Spread, seeds: float, settings: int) -> str:
    """The difference between the best and the worst of so many settings, beside the spread over seeds.

    That is the spread of the settings compared, where it is known, else that of others. Means over n seeds differ by
    chance with a deviation of spread * sqrt(2/n).
    """
    known, whose = here, "the spread over seeds"
    if not here.deviation > 0:
        known, whose = elsewhere, "the spread over seeds of other settings"
    if not known.deviation > 0:
        return "of one seed each: what chance does is not known (add seed=0,1,2)"
    found = gap >= least(settings, known.freedom) * known.deviation * math.sqrt(2 / seeds)
    if gap < known.deviation and not found:
        return f"{small(gap)}, smaller than {whose} ({small(known.deviation)}): it may be chance"
    told = f"{gap / known.deviation:.1f} times {whose} ({small(known.deviation)})"
    return told if found else f"{told}: of so few seeds it may be chance"


def small(value: float) -> str:
    """A spread in four places, or where that would say little in two digits; nothing where there is none."""
    return "" if pd.isna(value) else f"{value:.4f}" if value >= 0.001 else f"{value:.2g}"
