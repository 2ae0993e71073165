"""Muon: momentum whose steps are orthogonal matrices, for the inner weights of a network (K. Jordan and others, 2024).
Knows torch; for these small networks a step of it does what several of AdamW's do."""

from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial that brings every singular value near 1 within five rounds."""


class Muon(torch.optim.Optimizer):
    """For weights of two dimensions or more; a convolution's counts as a matrix of outputs by the rest."""

    def __init__(self, weights: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move each weight by `lr` along its orthogonalised momentum (Nesterov's)."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(mean, group["momentum"])
                direction = orthogonal(ahead.flatten(1))
                longer = max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
                weight.add_(direction.view_as(weight), alpha=-group["lr"] * longer)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """About the nearest matrix of the same shape whose singular values are all 1; bfloat16 is exact enough for it."""
    tall = matrix.shape[0] > matrix.shape[1]
    result = (matrix / (matrix.norm() + 1e-7)).bfloat16()
    result = result.T if tall else result
    first, second, third = COEFFICIENTS
    for _ in range(5):
        square = result @ result.T
        result = first * result + (second * square + third * square @ square) @ result
    return (result.T if tall else result).float()


def inner_matrices(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Its linear and convolution weights, but neither those that read or write pixels or latents nor embeddings."""
    ends = ("conv_in", "conv_out", "x_embedder", "code", "patch_embedding")
    weights: list[torch.nn.Parameter] = []
    for name, part in module.named_modules():
        is_end = name.endswith(ends) or name == "proj_out"
        if isinstance(part, torch.nn.Linear | torch.nn.Conv2d) and not is_end:
            assert isinstance(part.weight, torch.nn.Parameter)
            weights.append(part.weight)
    return weights
