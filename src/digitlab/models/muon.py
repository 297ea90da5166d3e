"""Muon: steps along orthogonalized momentum (Jordan et al., 2024).

https://kellerjordan.github.io/posts/muon/, with the scale of Liu et al. (2025,
https://arxiv.org/abs/2502.16982). For the gradient G of a weight W of m rows and n columns

    M = mu M + (1 - mu) G,   U = mu M + (1 - mu) G                                          (1)
    W = (1 - rate * decay) W - rate * 0.2 sqrt(max(m, n)) * orthogonalize(U)                (2)

where orthogonalize(U) is near P Q^T of the singular value decomposition U = P S Q^T. The weights of
convolutions count as matrices of one row for each first index. AdamW trains the weights of one
dimension: biases and the gains of norms.

torch.optim.Muon takes matrices alone, and it, pytorch-optimizer and timm compute in bfloat16, which
takes ten times as long as float32 on a CPU without instructions for it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

# The quintic of Newton and Schulz, tuned by Jordan et al. for its slope at 0: a few steps map all
# but the smallest singular values to between 0.7 and 1.2.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalize(matrix: Tensor, steps: int) -> Tensor:
    """Bring the singular values of a matrix near 1 by `steps` steps of Newton and Schulz.

    A step is X = (a I + b XX^T + c (XX^T)^2) X. All factors are polynomials of XX^T and commute, so
    that their product is computed on the smaller side of the matrix and applied once.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    gram = x @ x.T
    product = factor = _factor(gram)
    for _ in range(steps - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    result: Tensor = product @ x
    return result.T if is_tall else result


def _factor(gram: Tensor) -> Tensor:
    """The factor of X in a step, for G = XX^T."""
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.addmm(gram, gram, gram, beta=B, alpha=C).add_(identity, alpha=A)


class Muon(Optimizer):
    """Muon for weights of two or more dimensions, AdamW for the others.

    Args:
        parameters: The weights of both kinds.
        lr, momentum, weight_decay: The rate, mu and the decay of (1) and (2).
        ns_steps: The steps of Newton and Schulz.
        adamw_lr, adamw_weight_decay, beta2: The values of AdamW; its beta1 is 0.9.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        ns_steps: int,
        adamw_lr: float,
        adamw_weight_decay: float,
        beta2: float,
    ) -> None:
        every = list(parameters)
        matrices = {
            "params": [weight for weight in every if weight.ndim > 1],
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "ns_steps": ns_steps,
        }
        others = {
            "params": [weight for weight in every if weight.ndim < 2],
            "lr": adamw_lr,
            "weight_decay": adamw_weight_decay,
            "beta2": beta2,
            # Makes `load_state_dict` move the number of steps to the device of the weight.
            "fused": True,
        }
        super().__init__([group for group in (matrices, others) if group["params"]], {})

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Take a step. `closure` computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if "momentum" in group:
                for weight in weights:
                    self._step_matrix(weight, group)
            else:
                self._step_others(weights, group)
        return loss

    def _step_matrix(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(buffer, group["momentum"]).flatten(1)
        scale = 0.2 * max(update.shape) ** 0.5
        update = orthogonalize(update, group["ns_steps"]).reshape(weight.shape)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"] * scale)

    def _step_others(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] |= {
                    "step": torch.zeros((), device=weight.device),
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                }
        states = [self.state[weight] for weight in weights]
        adamw(
            list(weights),
            [weight.grad for weight in weights if weight.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=group["beta2"],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )
