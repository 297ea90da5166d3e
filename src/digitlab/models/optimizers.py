"""Make optimizers and learning-rate schedules from the values of conf/optimizer, conf/scheduler."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR
from torch.optim.sgd import sgd

from digitlab.models.muon import Muon
from digitlab.registry import SCHEDULES, register_schedule

# They need a closure (L-BFGS), matrices only (torch's Muon) or sparse gradients (SparseAdam).
UNUSABLE = {"lbfgs", "muon", "sparseadam"}
# The rate, which a schedule changes, aside.
SGD_OPTIONS = ("weight_decay", "momentum", "dampening", "nesterov", "maximize", "foreach", "fused")


def make_optimizer(parameters: Iterable[nn.Parameter], name: str, **options: Any) -> Optimizer:
    """Make the optimizer of conf/optimizer/<name>.yaml.

    Args:
        parameters: The parameters to optimize.
        name: "adamw", "muon", a rate of k-means, or the name of a class of torch.optim in lower
            case.
        **options: The other values of the YAML file.

    Raises:
        ValueError: torch.optim does not have the class, or the class does not take an option. The
            class itself may raise other exceptions for wrong values.
    """
    match name:
        case "adamw":
            return AdamW(parameters, betas=(0.9, options.pop("beta2")), fused=True, **options)
        case "muon":
            return Muon(parameters, **options)
        case "inverse_count" | "sqrt_share":
            # K-means scales the gradient to these rates, centre by centre.
            return SGD(parameters, lr=1.0)
    classes = _usable_optimizers()
    if name not in classes:
        matches = difflib.get_close_matches(name.lower(), classes, n=1)
        hint = f"; did you mean {matches[0]}?" if matches else ""
        raise ValueError(f"must be one of torch.optim's {', '.join(classes)}{hint}")
    cls = classes[name]
    _, *arguments = inspect.signature(cls).parameters
    unknown = [str(key) for key in options if key not in arguments]
    if unknown:
        raise ValueError(
            f"{cls.__name__} has no {', '.join(unknown)}; it has {', '.join(arguments)}"
        )
    return cls(parameters, **options)


def _usable_optimizers() -> dict[str, type[Optimizer]]:
    """The classes of torch.optim that any model can use, by their names in lower case, sorted."""
    classes = {}
    for cls in vars(torch.optim).values():
        if isinstance(cls, type) and issubclass(cls, Optimizer) and cls is not Optimizer:
            classes[cls.__name__.lower()] = cls
    return {name: classes[name] for name in sorted(classes) if name not in UNUSABLE}


def make_bare_step(optimizer: Optimizer, parameter: nn.Parameter) -> Callable[[], object]:
    """Make a function that takes a step of an optimizer, without its hooks if it is plain SGD.

    Those, and the record for torch's profiler, take a fifth of the time of k-means.

    Args:
        optimizer: An optimizer of the parameter alone.
        parameter: Has its gradient when the function is called.
    """
    [group] = optimizer.param_groups
    if type(optimizer) is not SGD or group["momentum"] != 0:
        return optimizer.step
    options = {key: value for key, value in group.items() if key in SGD_OPTIONS}

    def step() -> None:
        assert parameter.grad is not None
        sgd([parameter], [parameter.grad], [None], lr=group["lr"], **options)

    return step


def try_optimizer(options: dict[str, Any]) -> None:
    """Make an optimizer of weights and biases and take a step with it.

    Args:
        options: The values of conf/optimizer, `name` among them.

    Raises:
        ValueError: The values make no optimizer, or it cannot step.
    """
    values = {key: value for key, value in options.items() if key != "name"}
    texts = {key: value for key, value in values.items() if isinstance(value, str)}
    if texts:
        lines = [f"optimizer.{key}={value}: must be a number" for key, value in texts.items()]
        raise ValueError("\n".join(lines))
    weights = [nn.Parameter(torch.zeros(*shape)) for shape in ((2,), (2, 2), (2, 2, 3, 3))]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    try:
        make_optimizer(weights, **options).step()
    except Exception as error:
        message = str(error)
        if values:
            message += f" (with {' '.join(f'{key}={value}' for key, value in values.items())})"
        raise ValueError(f"optimizer={options['name']}: {message}") from error


def make_scheduler(
    optimizer: Optimizer, name: str, total_steps: int, **options: Any
) -> LRScheduler | None:
    """Make the schedule of conf/scheduler/<name>.yaml over `total_steps` optimizer steps.

    Returns:
        The schedule, or None for a constant rate.

    Raises:
        ValueError: No schedule has this name, or `total_steps` is too small for it.
    """
    schedule: LRScheduler | None = SCHEDULES.find(name)(optimizer, total_steps, **options)
    return schedule


@register_schedule("constant")
def constant(optimizer: Optimizer, total_steps: int) -> None:
    """Keep the rate."""


@register_schedule("linear")
def linear(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """Lower the rate to 0 in a straight line."""
    return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=total_steps)


@register_schedule("cosine")
def cosine(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """Lower the rate to 0 along half a cosine."""
    return CosineAnnealingLR(optimizer, T_max=total_steps)


@register_schedule("one_cycle")
def one_cycle(optimizer: Optimizer, total_steps: int, pct_start: float) -> LRScheduler:
    """Raise the rate from 1/25 to its value in a share `pct_start` of the steps; then lower it."""
    return _one_cycle(optimizer, total_steps, pct_start, "one_cycle", "cos")


@register_schedule("one_cycle_linear")
def one_cycle_linear(optimizer: Optimizer, total_steps: int, pct_start: float) -> LRScheduler:
    """As `one_cycle`, in straight lines."""
    return _one_cycle(optimizer, total_steps, pct_start, "one_cycle_linear", "linear")


def _one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    pct_start: float,
    name: str,
    strategy: Literal["cos", "linear"],
) -> LRScheduler:
    if total_steps < 3:
        raise ValueError(
            f"scheduler={name}: must have 3 steps or more, not {total_steps};"
            " train longer, or choose scheduler=constant"
        )
    # torch divides by zero if the rise takes a single step.
    rise = max(pct_start, 1.5 / total_steps)
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(
        optimizer,
        peaks,
        total_steps=total_steps,
        cycle_momentum=False,
        pct_start=rise,
        anneal_strategy=strategy,
    )
