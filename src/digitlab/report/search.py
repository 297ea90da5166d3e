"""What a report says about a search: its result, its course, and which settings mattered.

A search chooses among its trials by their scores, so the best of many is optimistic: it is good, or
it was lucky. Its result is therefore a setting that ran again with fresh seeds, those that no trial
had. Such runs selected nothing, and their mean is ranked first; the run that was selected is left
out of it. Without fresh seeds there are only candidates.

The importance of a setting is the share of the variance of the score that the setting explains
alone (fANOVA: Hutter, Hoos and Leyton-Brown, 2014), as Optuna computes it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from digitlab.figures import Panel, Points, tick_positions
from digitlab.formatting import format_loss, format_spread
from digitlab.report.progress import ENDED
from digitlab.report.sentences import describe_run, format_duration
from digitlab.report.statistics import (
    average_baselines,
    find_varied_settings,
    mean_scores,
    shared_objective,
    short_name,
    sort_key,
)
from digitlab.runs.results import Objective
from hydra_plugins.resumable_sweeper.jobs import read_plan

# With fewer completed trials, an importance would say nothing.
FEWEST_TRIALS = 10
# A number with so many values or fewer is a choice, and with a wider range logarithmic.
FEW_VALUES, WIDE = 8, 30
# Points are drawn up to so many times the distance from the best score to the median.
FAR = 10
MAX_EPOCHS = "config.trainer.max_epochs"


@dataclass(frozen=True)
class Search:
    """What a report says about the trials of a search."""

    # The completed runs that are compared. `is_confirmed` says whether their setting ran with fresh
    # seeds; of such a setting there are only these runs.
    runs: pd.DataFrame
    # The runs of such settings that they were selected by.
    selected: pd.DataFrame
    # A row per trial that ended, in the order in which they were tried: with `best`, the best score
    # so far, `drawn`, the score unless it is far off, and `minutes`, what the trials so far took.
    trials: pd.DataFrame
    objective: Objective
    # Sentences: the result, what selected it, what was pruned.
    verdict: list[str]
    # The share of each setting, largest first, and what the shares mean or why there are none.
    importance: dict[str, float]
    importance_note: str
    # Horizontal lines: the mean of the result, and trivial rivals.
    references: dict[str, float]

    @property
    def chart_note(self) -> str:
        """What the points of the charts are."""
        note = (
            "A point is a trial. One that was pruned stands at its best epoch, after fewer epochs"
        )
        note += " than the others."
        if far := (self.trials.score.notna() & self.trials.drawn.isna()).sum():
            note += (
                f" {far} trial{'s are' if far > 1 else ' is'} far worse than most and not drawn."
            )
        return note

    @property
    def course(self) -> list[Panel]:
        """The best score so far against the number of trials and against the time."""
        number = [float(n) for n in range(1, len(self.trials) + 1)]
        panels = []
        for label, x in (("trials", number), ("minutes of all trials", [*self.trials.minutes])):
            own = Points("a trial", has_line=False)
            best = Points("best so far")
            rows = zip(x, self.trials.drawn, self.trials.best, self.trials.words, strict=True)
            for place, score, so_far, words in rows:
                if math.isfinite(so_far):
                    best.add(place, so_far, f"best of {label} {place:.4g}: {format_loss(so_far)}")
                if math.isfinite(score):
                    own.add(place, score, words)
            panels.append(Panel(label, [best, own], {}, False))
        return panels

    @property
    def numbers(self) -> set[str]:
        """The settings that are numbers with many values."""
        keys = find_varied_settings(self.trials)
        return {key for key in keys if is_numeric(self.trials[key].dropna().unique().tolist())}

    @property
    def slices(self) -> list[Panel]:
        """The score against each setting."""
        panels = []
        for key in find_varied_settings(self.trials):
            groups = [Points("completed", has_line=False), Points("pruned", has_line=False)]
            known = self.trials[self.trials[key].notna() & self.trials.drawn.notna()]
            values = sorted(known[key].unique(), key=sort_key)
            is_number, ticks, is_log = key in self.numbers, dict[str, float](), None
            if not is_number:
                ticks, scale = tick_positions(values)
                is_log = scale == "log"
            for _, trial in known.iterrows():
                place = float(trial[key]) if is_number else ticks[trial[key]]
                groups[trial.status == "pruned"].add(place, trial.drawn, trial.words)
            series = [points for points in groups if points.x]
            panels.append(Panel(short_name(key), series, ticks, is_log))
        return panels


def find_search(table: pd.DataFrame, compared: pd.DataFrame) -> Search | None:
    """Describe the search that made some runs; None if none did.

    Args:
        table: The runs of one objective, completed or not.
        compared: The completed ones whose scores can be compared.
    """
    trials = find_trials(table)
    if not len(trials):
        return None
    objective, runs = shared_objective(compared), select_result(compared, trials)
    # A trial that failed or diverged has no score.
    scored = trials.status.isin(("completed", "pruned"))
    trials = trials.assign(score=trials.score.where(scored).astype(float))
    completed = trials.score.where(trials.status == "completed")
    best = completed.cummax() if objective.direction == "max" else completed.cummin()
    words = [f"{describe_run(t)}: {format_loss(t.score)} {t.status}" for _, t in trials.iterrows()]
    drawn, best = (drop_far(values, trials.score, objective) for values in (trials.score, best))
    trials = trials.assign(
        best=best.ffill(),
        drawn=drawn,
        minutes=trials.seconds.astype(float).cumsum() / 60,
        words=words,
    )
    selected = compared.drop(runs.index)
    verdict = [*describe_result(runs, selected, len(trials)), *describe_pruned(trials)]
    importance, note = find_importance(trials)
    references = {f"{name} (test)": v for name, v in average_baselines(trials).items()}
    if runs.is_confirmed.any():
        references |= {"confirmed": float(mean_scores(runs).iloc[0])}
    return Search(runs, selected, trials, objective, verdict, importance, note, references)


def drop_far(values: pd.Series, scores: pd.Series, objective: Objective) -> pd.Series:
    """Keep values that are not far worse than most scores; one of a diverging run hides them."""
    costs = objective.cost(scores)
    reach = FAR * (costs.median() - costs.min())
    return values.where((objective.cost(values) <= costs.min() + reach) | (reach == 0))


def find_trials(table: pd.DataFrame) -> pd.DataFrame:
    """Select the trials that ended, in the order in which their searches proposed them."""
    if "trial" not in table:
        return table.head(0)
    trials = table[table.trial & table.status.isin(ENDED)]
    places: dict[str, int] = {}
    for sweep in sorted({Path(run).parent for run in trials.run}):
        for name in read_plan(sweep):
            places[str(sweep / name)] = len(places)
    order = [places.get(run, len(places)) for run in trials.run]
    return trials.assign(order=order).sort_values("order", kind="stable")


def select_result(compared: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Mark the settings of a search that ran with fresh seeds, and keep only these runs of them."""
    fresh = ~compared.trial & ~compared.seed.isin(trials.seed)
    confirmed = compared.setting.isin(compared.setting[fresh])
    marked = compared.assign(is_confirmed=confirmed)
    return marked[fresh | ~confirmed]


def describe_result(runs: pd.DataFrame, selected: pd.DataFrame, trials: int) -> list[str]:
    """Say what the search found: the setting with fresh seeds, or else the best trial."""
    first, objective = mean_scores(runs).index[0], shared_objective(runs)
    own = runs[runs.setting == first]
    number = f"{trials} trial{'s' * (trials != 1)}"
    if not own.is_confirmed.any():
        return [
            f"Best of {number}: {objective.name} {format_loss(own.score.mean())} with {first}.",
            "This is a candidate and no result: the best of many is optimistic. Run it again with"
            ' fresh seeds: hydra.sweeper.confirm=["seed=1","seed=2","seed=3"].',
        ]
    seeds = ", ".join(f"{seed:.0f}" for seed in sorted(own.seed))
    text = f"Result: {objective.name} {format_loss(own.score.mean())} with {first}"
    text += f", the mean over the fresh seed{'s' * (len(own) > 1)} {seeds}"
    if len(own) > 1:
        text += f" (spread {format_spread(own.score.std())})"
    test = objective.on("test")
    if test != objective.name and own.get(test, pd.Series(dtype=float)).notna().any():
        baselines = average_baselines(own).items()
        rivals = ", ".join(f"{name} {format_loss(value)}" for name, value in baselines)
        text += f"; its {test.replace('/', ' ')} is {format_loss(own[test].mean())}"
        text += f" ({rivals})" if rivals else ""
    lines = [f"{text}."]
    own_selected = selected[selected.setting == first]
    if len(own_selected):
        trial = own_selected.iloc[0]
        lines.append(
            f"As a trial, with seed {trial.seed:.0f}, it had {format_loss(trial.score)}, one of"
            f" {number}. The best of many is optimistic; the fresh seeds selected nothing."
        )
    if (others := runs.setting[runs.is_confirmed].nunique() - 1) > 0:
        lines.append(
            f"{others} more setting{'s' * (others > 1)} ran with fresh seeds and"
            f" {'are' if others > 1 else 'is'} ranked next."
        )
    return lines


def describe_pruned(trials: pd.DataFrame) -> list[str]:
    """Say how many trials were pruned, and estimate the time that this saved."""
    pruned = trials[(trials.status == "pruned") & trials.epochs.gt(0)]
    planned = pd.to_numeric(pruned.get(MAX_EPOCHS, pd.Series(dtype=float)), errors="coerce")
    if not len(pruned) or planned.isna().any():
        return []
    saved = ((planned - pruned.epochs) * pruned.fit_seconds / pruned.epochs).sum()
    return [
        f"{len(pruned)} of {len(trials)} trials were pruned, after {pruned.epochs.sum():.0f} of"
        f" their {planned.sum():.0f} epochs. At the pace of each, the missing epochs would have"
        f" taken {format_duration(saved)} (an estimate); all trials together took"
        f" {format_duration(trials.seconds.sum())}."
    ]


def is_numeric(values: list[str]) -> bool:
    """Whether a setting is a number with many values."""
    return len(values) > FEW_VALUES and all(sort_key(value)[0] == 0 for value in values)


def find_importance(trials: pd.DataFrame) -> tuple[dict[str, float], str]:
    """Estimate how much each setting explains of the scores; returns what it means as well."""
    completed = trials[trials.status == "completed"]
    keys = [key for key in find_varied_settings(completed) if completed[key].notna().all()]
    if len(completed) < FEWEST_TRIALS or not keys or completed.score.nunique() < 2:
        return {}, f"Their importance takes {FEWEST_TRIALS} completed trials or more."
    try:
        import optuna
    except ModuleNotFoundError:
        return {}, "Their importance takes Optuna: pip install 'digitlab[search]'."
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    columns = {short_name(key): find_distribution(completed[key]) for key in keys}
    for place, score in enumerate(completed.score):
        study.add_trial(
            optuna.trial.create_trial(
                value=float(score),
                params={name: values[place] for name, (values, _) in columns.items()},
                distributions={name: distribution for name, (_, distribution) in columns.items()},
            )
        )
    evaluator = FanovaImportanceEvaluator(seed=0)
    note = (
        f"The share of the differences among the {len(completed)} completed trials that each"
        " setting explains alone (Optuna's fANOVA), without interactions and pruned trials. It is"
        " rough after few trials, and larger for settings searched over a wider range."
    )
    return get_param_importances(study, evaluator=evaluator), note


def find_distribution(column: pd.Series) -> tuple[list[Any], Any]:
    """The values of a setting for Optuna, and their distribution.

    fANOVA weighs all parts of a range alike, so a number of a wide range is given as its logarithm.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    values = [*column]
    if not is_numeric([*column.unique()]):
        choices: list[Any] = sorted(set(values), key=sort_key)
        return values, CategoricalDistribution(choices)
    numbers = [float(value) for value in values]
    if min(numbers) > 0 and max(numbers) > WIDE * min(numbers):
        numbers = [math.log10(number) for number in numbers]
    return numbers, FloatDistribution(min(numbers), max(numbers))
