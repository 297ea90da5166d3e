"""What a report prints fits the terminal: tables lose columns and words, sentences are wrapped.

Where the output is no terminal, such as a file, nothing is shortened.
"""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# A column is not shortened below this width.
MIN_WIDTH = 8
GAP = 1


def find_width() -> int | None:
    """The number of columns of the terminal; None if stdout is none."""
    if not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def has_unicode() -> bool:
    """Whether stdout can print any character."""
    return (sys.stdout.encoding or "").lower().startswith("utf")


def ellipsis() -> str:
    """The character in place of what is left out."""
    return "…" if has_unicode() else "~"


def crop(text: str, width: int) -> str:
    """Shorten a text to a width; an ellipsis takes the place of its end."""
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}{ellipsis()}"


def wrap(lines: Sequence[str], width: int | None) -> list[str]:
    """Wrap sentences at spaces; words such as paths stay whole."""
    if width is None:
        return list(lines)
    wrapped = []
    for line in lines:
        parts = textwrap.wrap(
            line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        wrapped += parts or [""]
    return wrapped


def fit_table(table: "pd.DataFrame", width: int | None, droppable: Sequence[str]) -> list[str]:
    """Format a table of texts, no wider than a width.

    Columns are left out first, then texts are shortened, the longest column first.

    Args:
        table: The table.
        width: The largest width; None for any.
        droppable: The columns that may be left out, the first one first.

    Returns:
        The lines of the table, and one that names the columns that are left out.
    """
    if width is None:
        return [table.to_string(index=False)]
    left_out = []
    for name in droppable:
        if measure(table) <= width:
            break
        if name in table:
            table = table.drop(columns=name)
            left_out.append(name)
    table = shorten_columns(table, width)
    lines = [crop(line, width) for line in table.to_string(index=False).splitlines()]
    if left_out:
        lines.append(crop(f"(not shown: {', '.join(left_out)})", width))
    return lines


def measure(table: "pd.DataFrame") -> int:
    """The width of a table as text."""
    return len(table.to_string(index=False).partition("\n")[0])


def shorten_columns(table: "pd.DataFrame", width: int) -> "pd.DataFrame":
    """Shorten the widest columns, their names and texts, until a table fits if it can."""
    widths = []
    for position, name in enumerate(table.columns):
        texts = [str(text) for text in table.iloc[:, position]]
        widths.append(max(map(len, [str(name), *texts])))
    while sum(widths) + GAP * len(widths) > width and max(widths, default=0) > MIN_WIDTH:
        widths[widths.index(max(widths))] -= 1
    shortened = table.copy()
    for position, limit in enumerate(widths):
        shortened.isetitem(position, [crop(str(text), limit) for text in table.iloc[:, position]])
    names = []
    for name, limit in zip(map(str, table.columns), widths, strict=True):
        # The end of a dotted key tells more than its beginning.
        names.append(name if len(name) <= limit else f"{ellipsis()}{name[1 - limit :]}")
    return shortened.set_axis(names, axis="columns")
