"""Fill the templates of pages: everything in one file, everything escaped.

A page holds its style sheet and its one script, and a policy that names both by their digests:
a browser runs no other script, loads nothing from elsewhere and sends nothing, even if a name, an
error or a log of a run holds code.
"""

import os
import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

LONGEST = 500  # characters of a text from a run in one cell


class Column(NamedTuple):
    """A column of a table that can be sorted."""

    key: str
    """Its name in the address of the page, as `#sort=objective`."""
    label: str
    is_number: bool = False
    source: str = ""
    """Where its values come from."""


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    number: float | None = None
    """What a column of numbers is sorted by."""
    link: str = ""
    kind: str = ""
    """Its CSS classes."""


class Row(NamedTuple):
    """A row of the table of runs."""

    status: str
    words: str
    """What the filter searches besides the text of the cells."""
    cells: list[Cell]


class Table(NamedTuple):
    """A table that can be sorted."""

    columns: list[Column]
    rows: list[Row]


@cache
def environment() -> Environment:
    """The templates, with the style sheet, the script and the policy of all pages."""
    loader = PackageLoader("digitlab.report")
    made = Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters["code"] = format_code
    texts = {name: loader.get_source(made, name)[0] for name in ("page.css", "page.js")}
    style, script = (f"'sha256-{_digest(text)}'" for text in texts.values())
    made.globals |= {
        "style": Markup(texts["page.css"]),
        "script": Markup(texts["page.js"]),
        "policy": (
            f"default-src 'none'; img-src data:; style-src {style}; script-src {script};"
            " base-uri 'none'; form-action 'none'"
        ),
    }
    return made


def format_code(text: str) -> Markup:
    """Set what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _digest(text: str) -> str:
    return b64encode(sha256(text.encode()).digest()).decode()


def render(template: str, **values: Any) -> bytes:
    """Fill a template; characters that UTF-8 lacks become question marks."""
    return environment().get_template(template).render(values).encode(errors="replace")


def make_link(directory: Path, page_folder: Path) -> str:
    """The address of a directory, relative to the folder of the page: it names no scheme."""
    return quote(os.fsencode(os.path.relpath(directory, page_folder))) + "/"


def shorten(text: str, longest: int = LONGEST) -> str:
    """Cut a text to a length."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
