"""Many runs on one page: which is best, what each setting did, what failed, and what chance alone explains."""

import math
import re
import shutil
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from digitlab import figures
from digitlab.formatting import format_loss, format_spread
from digitlab.report.statistics import (
    REMEDY,
    bare,
    comparable,
    compare,
    judge,
    order,
    shared,
    trivial,
    varied,
)
from digitlab.report.table import SAME, collect, in_words
from digitlab.runs.files import LARGEST_JSON, atomic_write
from digitlab.runs.results import is_no_better

SHOWN = 20  # rows of a table in the terminal
PICTURES = ("centers", "confusion_matrix", "reconstructions", "generated", "latents")
WIDE = 80  # letters of a setting or an error there; report.md has all
LINES = 12  # in one picture; more cannot be told apart
LEGEND = """Losses are means over the seeds of a setting, spread is their standard deviation; p: how
often equal settings with these spreads have a best and a worst so clearly apart (Welch's t, by
parametric bootstrap); `of mean image`: the test loss as a share of that baseline's; seconds: of a
run, all that it did, training or not."""
OTHER = "`other`: in what a run differs from the last one beside its settings (code, data, library versions)."


def write_report(sweeps: Sequence[Path], out: Path) -> str:
    """Write report.md, runs.csv and their pictures into `out`; returns what to print.

    Raises ValueError where the directories hold no runs.
    """
    table = collect(sweeps)
    settings = varied(table)
    done, left_out = comparable(table)
    done = done.assign(setting=in_words(done))
    ranking, ended = (
        rank(done, settings),
        table[table.status != "completed"].sort_values(["setting", "seed"]),
    )
    failures = ended[["setting", "status", "seed", "error", "run"]].assign(
        seed=[number(n, 0) for n in ended.seed]
    )
    answers = answer(table, done) + left_out

    page = [
        f"# {', '.join(str(folder) for folder in sweeps)}",
        "",
        *(f"- {line}" for line in answers),
        "",
    ]
    if len(ranking):
        page += [
            "## Settings, best first",
            "",
            ranking.to_markdown(index=False, disable_numparse=True),
            "",
        ]
        page += [f"{LEGEND} {OTHER}" if "other" in ranking else LEGEND, ""]
    if len(failures):
        page += [
            "## Not completed",
            "",
            failures.to_markdown(index=False, disable_numparse=True),
            "",
        ]
    for key in settings:
        page += what_it_did(key, settings, done, ended, out)
    page += best_run(done, out)
    drawn_before = pictures(out / "report.md")
    with atomic_write(out / "report.md") as part:
        part.write_text(
            "\n".join(
                [*page, "Every run, with all its settings and metrics: [runs.csv](runs.csv).", ""]
            )
        )
    for picture in drawn_before - pictures(out / "report.md"):  # what another report drew here
        (out / picture).unlink(missing_ok=True)
    with atomic_write(out / "runs.csv") as part:
        table.drop(columns=["warnings", "config.data.root"], errors="ignore").to_csv(
            part, index=False
        )

    told = ["", ranking.head(SHOWN).to_string(index=False)] if len(ranking) else []
    told += [f"... and {len(ranking) - SHOWN} more"] if len(ranking) > SHOWN else []
    if len(failures):
        brief = failures.assign(
            setting=[
                textwrap.shorten(words, WIDE, placeholder=" ...") for words in failures.setting
            ],
            error=[textwrap.shorten(error, WIDE, placeholder=" ...") for error in failures.error],
            run=[Path(run).name for run in failures.run],
        )
        told += ["", "Not completed:", brief.head(SHOWN).to_string(index=False)]
    return "\n".join([*told, "", *answers, f"Report: {out / 'report.md'}"])


def rank(done: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    """A row a setting: mean and spread over its seeds, best first."""
    if not len(done):
        return pd.DataFrame()
    rows = []
    told = [
        key for key in settings if done[key].nunique(dropna=False) > 1
    ]  # the others vary in runs not compared
    for _, group in done.groupby(settings or "setting", dropna=False):
        first = group.iloc[0]
        line = {bare(key): first[key] for key in told} or {"setting": first.setting}
        line |= {
            "seeds": len(group),
            first.score_name: group.score.mean(),
            "spread": group.score.std(),
        }
        line |= {"test/loss": group["test/loss"].mean()}
        line |= {
            f"of {name}": f"{group['test/loss'].mean() / value:.2f}x"
            for name, value in trivial(group).items()
        }
        rows.append(
            line | {"seconds": group.seconds.mean(), "other": " ".join(sorted(set(group.other)))}
        )
    ranking = pd.DataFrame(rows).sort_values(done.score_name.iloc[0], ignore_index=True)
    formats = {"spread": format_spread, "seconds": partial(number, places=1)}
    for name in ranking.select_dtypes("float"):
        ranking[name] = ranking[name].map(formats.get(name, format_loss))
    return ranking.replace("", pd.NA).dropna(axis="columns", how="all").fillna("")


def format_duration(seconds: float) -> str:
    """A time in the unit that a reader would choose."""
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return (
        f"{seconds / 60:.1f} min"
        if seconds >= 120
        else f"{seconds:.0f} s"
        if seconds >= 10
        else f"{seconds:.1f} s"
    )


def number(value: float, places: int) -> str:
    """A figure of a table; nothing where there is none."""
    return "" if pd.isna(value) else f"{value:.{places}f}"


def answer(table: pd.DataFrame, done: pd.DataFrame) -> list[str]:
    """What a reader wants to know first, a sentence each."""
    which = (
        "completed runs" if len(done) == (table.status == "completed").sum() else "runs compared"
    )
    states = ", ".join(f"{n} {name}" for name, n in table.status.value_counts().items())
    lines = [f"{len(table)} job{'s' * (len(table) != 1)}: {states}."]
    if repeats := int(table.repeats.sum()):
        lines.append(
            f"{repeats} more had the configuration of one of these: that completed last counts."
        )
    if not len(done):
        return lines
    best = done.loc[done.score.idxmin()]
    means = done.groupby("setting").score.mean().sort_values()
    if len(means) > 1:
        first, second = means.index[:2]
        both = done[done.setting.isin([first, second])]
        what = "Mean over seeds" if len(both) > 2 else best.score_name
        lines.append(
            f"{what}: {format_loss(means[first])} with {first}, then"
            f" {format_loss(means[second])} with {second};"
            f" the difference {first_and_second(both, first)}."
        )
    what = best.score_name if best.score_name == "val/loss" else "train/loss (no images held out)"
    known = trivial(best.to_frame().T)
    baselines = ", ".join(f"{name} {format_loss(loss)}" for name, loss in known.items())
    lines.append(
        f"Best on {what}: {format_loss(best.score)} with {where(best)};"
        f" its test loss is {format_loss(best['test/loss'])} ({baselines})."
    )
    for name in ("mean_image", "pca"):
        if f"baseline/{name}" in done:
            beaten = done[f"baseline/{name}"].notna() & is_no_better(
                done["test/loss"], done[f"baseline/{name}"]
            )
            if beaten.any():
                rival = (
                    "predicting the mean image"
                    if name == "mean_image"
                    else "PCA with as many numbers an image"
                )
                lines.append(f"{beaten.sum()} of {len(done)} {which} are no better than {rival}.")
    alike: dict[str, list[str]] = {}  # warnings that differ in their figures alone
    for warning in (
        warning
        for found in done.warnings
        for warning in found
        if "predicting the mean image" not in warning
    ):
        alike.setdefault(re.sub(r"[\d.,]+(e[+-]\d+)?%?", "#", warning), []).append(warning)
    for found in alike.values():
        lines.append(f"Warned in {len(found)} of {len(done)} runs: {found[0]}")
    if (done.other != "").any():
        lines.append(
            f"{(done.other != '').sum()} of {len(done)} {which} were made by other code or libraries than the last:"
            " column other."
        )
    total = done.seconds.sum()
    lines.append(
        f"Time: {format_duration(total)} in all, {format_duration(done.fit_seconds.sum())} of it training;"
        f" {format_duration(done.seconds.mean())} a run, {format_duration(done.seconds.max())} the longest."
    )
    return lines


def first_and_second(both: pd.DataFrame, first: str) -> str:
    """Compare the gap between the two best settings with chance, over the seeds they share."""
    has_one = both.groupby("setting").seed.nunique().min() < 2
    fair = both if has_one else shared(both, "setting")
    over = f"over the {fair.seed.nunique()} seeds they share " if len(fair) < len(both) else ""
    verdict = judge(fair.groupby("setting").score.agg(["mean", "std", "count"]))
    if verdict.best != first and verdict.p_value < 1:
        return f"{over}is the other way round: it may be chance"
    return f"{over}is {verdict.words}"


def unfinished(ended: pd.DataFrame, key: str) -> str:
    """A sentence on the values of a setting at which runs did not complete, as no mean counts them; else nothing."""
    known = ended[ended[key].notna()]
    counts = known.groupby([key, "status"]).size()
    told = [
        f"{value} ({counts[value, status]} {status})"
        for value, status in sorted(counts.index, key=lambda at: order(at[0]))
    ]
    return f"Not counted, as they did not complete: {', '.join(told)}." if told else ""


def what_it_did(
    key: str, settings: list[str], done: pd.DataFrame, ended: pd.DataFrame, out: Path
) -> list[str]:
    """The page's lines on one setting, and its picture in `out`; nothing where no two runs differ in it alone."""
    lines, used, fixed, tuned = compare(done, key, settings)
    if not lines:
        return []
    like = [name for name in settings if f"{bare(name)}={used[name].iloc[0]}" in fixed.split()]
    ended = ended[
        (ended[like] == used[like].iloc[0]).all(axis=1)
    ]  # of those that could have stood here
    name = (
        "effect_" + re.sub(r"[^\w.+-]", "-", bare(key)) + ".png"
    )  # a stranger's key may be a path
    sentences, values = effect(lines, key)
    ticks = sorted({value for means in lines.values() for value in means.index}, key=order)
    drawn = dict(list(lines.items())[:LINES])
    with atomic_write(out / name) as part:
        figures.effect(drawn, ticks, bare(key), done.score_name.iloc[0], trivial(used)).savefig(
            part, dpi=110
        )
    page = [f"## What {bare(key)} did", ""]
    if tuned:
        page += [f"Each with the best {', '.join(map(bare, tuned))} that was tried with it.", ""]
    if fixed:
        page += [f"All with {fixed}.", ""]
    if len(lines) > LINES:
        page += [f"Drawn are the first {LINES} of {len(lines)} lines.", ""]
    if missing := unfinished(ended, key):
        sentences.append(missing)
    page += [*(f"- {sentence}" for sentence in sentences), ""]
    return [
        *page,
        values.to_markdown(index=False, disable_numparse=True),
        "",
        f"![{bare(key)}]({name})",
        "",
    ]


def pictures(page: Path) -> set[str]:
    """The pictures of ours that a report shows."""
    if not page.is_file() or page.stat().st_size > LARGEST_JSON:
        return set()
    return set(
        re.findall(r"\]\(((?:effect|best)_[\w.+-]+\.png)\)", page.read_text(errors="replace"))
    )


def where(best: pd.Series) -> str:
    """The settings of a run, where there are several, and its seed."""
    return f"{'' if best.setting == SAME else f'{best.setting}, '}seed {best.seed:.0f}"


def best_run(done: pd.DataFrame, out: Path) -> list[str]:
    """The page's lines on the best run, and its pictures in `out`."""
    if not len(done):
        return []
    best = done.loc[done.score.idxmin()]
    page = ["## The best run", "", f"{where(best)}: `{best.run}`", ""]
    for name in PICTURES:
        source = Path(best.run) / "figures" / f"{name}.png"
        if source.is_file() and source.resolve().is_relative_to(Path(best.run).resolve()):
            with atomic_write(out / f"best_{name}.png") as part:
                shutil.copyfile(source, part)
            page += [f"![{name}](best_{name}.png)", ""]
    return page


def further(value: str) -> bool:
    """Whether a value is a number beyond which there are others to try: not 0, where most settings end."""
    kind, number, _ = order(value)
    return kind == 0 and number != 0


def effect(lines: dict[str, pd.DataFrame], key: str) -> tuple[list[str], pd.DataFrame]:
    """In words, a sentence a setting of the others, and in a table, what one setting did."""
    sentences, rows = [], []
    for words, values in lines.items():
        told = effect_in_words(values)
        sentences.append(f"With {words}: {told}" if len(lines) > 1 else told[0].upper() + told[1:])
        for value, line in values.iterrows():
            row: dict[str, Any] = {"with": words} if len(lines) > 1 else {}
            row |= {bare(key): value, "seeds": int(line["count"])}
            row |= {"mean loss": format_loss(line["mean"]), "spread": format_spread(line["std"])}
            rows.append(row)
    return sentences, pd.DataFrame(rows)


def effect_in_words(values: pd.DataFrame) -> str:
    """The best and the worst value of a setting, and whether they differ by more than chance."""
    means = values["mean"]
    if math.isclose(means.min(), means.max(), rel_tol=1e-9):
        return f"the same at all ({format_loss(means.min())})."
    verdict = judge(values)
    best, worst = verdict.best, verdict.worst
    losses = means.map(format_loss)
    words = f"best at {best} ({losses[best]}), worst at {worst} ({losses[worst]})."
    words += f" The difference is {verdict.words}."
    edges = values.index[0], values.index[-1]
    if verdict.is_found and len(values) > 2 and best in edges and further(best):
        words += f" {best} is at the edge of what was tried."
    if verdict.left_out:
        alone = ", ".join(f"{value} ({losses[value]})" for value in verdict.left_out)
        words += f" Of one seed each, so not compared: {alone} {REMEDY}."
    return words
