"""The space of a search: overrides in Hydra's grammar as distributions of Optuna, and back."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

# The tag of Hydra's grammar that the space understands.
LOG = "log"
# The significant digits of numbers from an interval.
DIGITS = 4


@dataclass(frozen=True)
class Dimension:
    """A key that the search sets, and the values that it may take."""

    key: str
    """As the override has it, with + and @package."""
    distribution: BaseDistribution
    grid: tuple[Any, ...] = field(default=())
    """The values as Hydra parses them: of a choice, and of a range of floats."""

    def text(self, value: Any) -> str:
        """A value as an override has it."""
        if isinstance(self.distribution, CategoricalDistribution):
            return str(value)
        if isinstance(self.distribution, IntDistribution):
            return repr(int(value))
        # A multiple of a step gets the bits that a grid over the range has.
        return repr(self._nearest(value) if self.grid else float(value))

    def _nearest(self, value: float) -> float:
        return float(min(self.grid, key=lambda point: abs(point - value)))

    def shorten(self, value: Any) -> Any:
        """A proposed value with as many digits as matter, so that what is printed is what runs."""
        distribution = self.distribution
        if self.grid or not isinstance(distribution, FloatDistribution):
            return value
        # A narrow interval far from zero needs more digits than a number's size asks for.
        sizes = [size for size in (abs(value), distribution.high - distribution.low) if size > 0]
        places = max((DIGITS - 1 - math.floor(math.log10(size)) for size in sizes), default=0)
        return min(max(round(value, places), distribution.low), distribution.high)

    def read(self, value: Any) -> Any:
        """A parsed value of the application's configuration as Optuna has it; None if outside."""
        if isinstance(self.distribution, CategoricalDistribution):
            for choice, point in zip(self.distribution.choices, self.grid, strict=True):
                if point == value and isinstance(point, bool) == isinstance(value, bool):
                    return choice
            return None
        assert isinstance(self.distribution, IntDistribution | FloatDistribution)
        low, high = self.distribution.low, self.distribution.high
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if not low <= value <= high:
            return None
        if isinstance(self.distribution, FloatDistribution):
            fits = not self.grid or math.isclose(value, self._nearest(value), abs_tol=1e-12)
            return float(value) if fits else None
        fits = value == int(value) and (int(value) - low) % self.distribution.step == 0
        return int(value) if fits else None

    def points(self) -> Sequence[Any] | None:
        """All values; None of an interval."""
        if isinstance(self.distribution, CategoricalDistribution):
            return self.distribution.choices
        if isinstance(self.distribution, IntDistribution):
            return range(self.distribution.low, self.distribution.high + 1, self.distribution.step)
        assert isinstance(self.distribution, FloatDistribution)
        if self.distribution.single():
            return [self.distribution.low]
        return self.grid or None

    def corners(self) -> Sequence[Any]:
        """The values that are checked before the search: all choices, or both bounds."""
        if isinstance(self.distribution, CategoricalDistribution):
            return self.distribution.choices
        assert isinstance(self.distribution, IntDistribution | FloatDistribution)
        return [self.distribution.low, self.distribution.high]

    def __str__(self) -> str:
        if isinstance(self.distribution, CategoricalDistribution):
            return f"one of {', '.join(map(str, self.distribution.choices))}"
        assert isinstance(self.distribution, IntDistribution | FloatDistribution)
        kind = "integers" if isinstance(self.distribution, IntDistribution) else "numbers"
        words = f"{kind} from {self.distribution.low} to {self.distribution.high}"
        if self.distribution.log:
            return f"{words}, logarithmic"
        step = self.distribution.step
        return f"{words}, step {step}" if step not in (None, 1) else words


@dataclass(frozen=True)
class Space:
    """What the overrides of a command fix, and what they leave to the search."""

    fixed: dict[str, str]
    """Overrides with one value, by key."""
    dimensions: dict[str, Dimension]

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distribution of each key."""
        return {key: dimension.distribution for key, dimension in self.dimensions.items()}

    def lines(self, params: Mapping[str, Any]) -> list[str]:
        """The overrides of a trial's job."""
        values = [f"{key}={self.dimensions[key].text(params[key])}" for key in self.dimensions]
        return [*self.fixed.values(), *values]

    def shorten(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Proposed parameters with as many digits as matter."""
        return {key: self.dimensions[key].shorten(value) for key, value in params.items()}

    def fit(self, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """The parameters of a trial that an earlier command asked for; None if outside."""
        if params.keys() != self.dimensions.keys():
            return None
        for key, dimension in self.dimensions.items():
            value = params[key]
            if isinstance(dimension.distribution, CategoricalDistribution):
                if value not in dimension.distribution.choices:
                    return None
            elif dimension.read(value) is None:
                return None
        return dict(params)

    def read(self, lines: Iterable[str], defaults: Mapping[str, Any]) -> dict[str, Any] | None:
        """The parameters of a job, which may be of a grid; None if it lies outside the space.

        Args:
            lines: The job's overrides.
            defaults: The value of each key where no override names it.
        """
        values = dict(defaults)
        for override in OverridesParser.create().parse_overrides([*lines]):
            values[override.get_key_element().lstrip("+")] = override.value()
        params = {}
        for key, dimension in self.dimensions.items():
            params[key] = dimension.read(values.get(key.lstrip("+")))
            if params[key] is None:
                return None
        return params

    @cached_property
    def size(self) -> int | None:
        """The number of different parameters; None where an interval makes it infinite."""
        numbers = []
        for dimension in self.dimensions.values():
            points = dimension.points()
            if points is None:
                return None
            numbers.append(len(points))
        return math.prod(numbers)

    def points(self) -> Iterator[dict[str, Any]]:
        """All parameters of a finite space."""
        values = [dimension.points() or () for dimension in self.dimensions.values()]
        for point in itertools.product(*values):
            yield dict(zip(self.dimensions, point, strict=True))

    def corners(self) -> Iterator[dict[str, Any]]:
        """The first value of every key, and each other choice or bound of one key with these."""
        first = {key: dimension.corners()[0] for key, dimension in self.dimensions.items()}
        yield first
        for key, dimension in self.dimensions.items():
            for value in dimension.corners()[1:]:
                yield first | {key: value}


def make_space(parsed: Iterable[Override]) -> Space:
    """The space that overrides describe. Of two overrides of one key the later one counts.

    Raises:
        ValueError: An override describes no values, or none does.
    """
    fixed: dict[str, str] = {}
    dimensions: dict[str, Dimension] = {}
    for override in parsed:
        key = override.get_key_element()
        fixed.pop(key, None)
        dimensions.pop(key, None)
        if override.is_sweep_override():
            dimensions[key] = _dimension(key, override)
        else:
            fixed[key] = override.input_line or f"{key}={override.get_value_element_as_str()}"
    if not dimensions:
        raise ValueError(
            "no key has several values, so there is nothing to search;"
            " give one, as lr='tag(log,interval(1e-4,1e-1))' or size=1,2,4"
        )
    return Space(fixed, dimensions)


def _dimension(key: str, override: Override) -> Dimension:
    line, value = override.input_line, override.value()
    tags: set[str] = getattr(value, "tags", set())
    if tags - {LOG}:
        raise ValueError(f"{line}: the tag {min(tags - {LOG})} has no meaning here; use log")
    log = LOG in tags
    if isinstance(value, IntervalSweep):
        return Dimension(key, _interval(line, value, log))
    texts = list(dict.fromkeys(override.sweep_string_iterator()))
    if not texts:
        raise ValueError(f"{line}: has no value; give it at least one")
    if isinstance(value, RangeSweep):
        return _range(key, line, sorted({*value.range()}), log)
    if log:
        raise ValueError(f"{line}: tag(log, ...) needs interval(...) or range(...), not a list")
    parser = OverridesParser.create()
    points = tuple(parser.parse_override(f"key={text}").value() for text in texts)
    return Dimension(key, CategoricalDistribution(texts), points)


def _interval(line: str | None, value: IntervalSweep, log: bool) -> BaseDistribution:
    assert value.start is not None
    assert value.end is not None
    low, high = value.start, value.end
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"{line}: needs two finite numbers, the lower one first")
    _check_log(line, low, log)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _range(key: str, line: str | None, points: list[Any], log: bool) -> Dimension:
    step = points[1] - points[0] if len(points) > 1 else 1
    if log and (step != 1 or not isinstance(points[0], int)):
        raise ValueError(f"{line}: tag(log, range(...)) needs integers with step 1; use interval")
    _check_log(line, points[0], log)
    if isinstance(points[0], int):
        return Dimension(key, IntDistribution(points[0], points[-1], log=log, step=step))
    # The exact step: Optuna moves an upper bound that is no multiple of it.
    high = points[0] + step * (len(points) - 1)
    return Dimension(key, FloatDistribution(points[0], high, step=step), tuple(points))


def _check_log(line: str | None, low: float, log: bool) -> None:
    if log and low <= 0:
        raise ValueError(f"{line}: a logarithmic range begins above 0; choose a larger start")
