"""One training loop for every part of the tiny models: seeded by step, averaged weights, checkpoints to resume from.
Knows torch; nothing of what is trained or on what."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from jobs.training.muon import Muon, inner_matrices

CHECKPOINT_SECONDS = 60


def _say(line: str) -> None:
    print(line, flush=True)


def fit(
    name: str,
    module: torch.nn.Module,
    loss: Callable[[torch.Generator], torch.Tensor],
    steps: int,
    folder: Path,
    decay: float = 0.999,
    learning_rate: float = 2e-3,
    matrix_rate: float = 0.02,
    report: Callable[[str], None] = _say,
) -> None:
    """Train to the last step and leave the averaged weights in the module, in eval mode.

    Args:
        loss: the loss of one batch; all its randomness comes from the generator, seeded by the step.
        folder: where `name`.pt is saved; a stopped run resumes from it, with the batches it would have had.
        decay: of the average of the weights, at its longest.
        learning_rate: of AdamW, which trains what is no inner matrix.
        matrix_rate: of Muon, which trains the inner matrices.
    """
    checkpoint = folder / f"{name}.pt"
    matrices = inner_matrices(module)
    others = [weight for weight in module.parameters() if all(weight is not matrix for matrix in matrices)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    ]
    if matrices:
        optimizers.append(Muon(matrices, matrix_rate))
    rates = [optimizer.defaults["lr"] for optimizer in optimizers]
    average = {key: value.detach().clone() for key, value in module.named_parameters()}
    done = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(saved["module"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        average, done = saved["average"], saved["done"]
    module.train()
    started = saved_at = time.monotonic()
    first, losses = done, []
    while done < steps:
        value = loss(torch.Generator().manual_seed(done))
        module.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * _schedule(done, steps)
            optimizer.step()
        done += 1
        keep = min(decay, (1 + done) / (10 + done))
        with torch.no_grad():
            for key, weight in module.named_parameters():
                average[key].lerp_(weight, 1 - keep)
        losses.append(value.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"{name}: the loss of step {done} is {losses[-1]}")
        now = time.monotonic()
        if done == steps or now - saved_at > CHECKPOINT_SECONDS:
            _save(checkpoint, module, optimizers, average, done)
            seconds = (now - started) / (done - first)
            left = (steps - done) * seconds / 60
            report(f"{name}: step {done} of {steps}, loss {sum(losses) / len(losses):.4f}, {seconds:.3f} s per step,"
                   f" {left:.0f} min left")  # fmt: skip
            losses, saved_at = [], now
    with torch.no_grad():
        for key, weight in module.named_parameters():
            weight.copy_(average[key])
    module.eval()


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: a short rise, a slow fall, and in the last sixth a fast one to a hundredth."""
    rise = max(1, min(50, steps // 10))
    if step < rise:
        return (step + 1) / rise
    return min(1 - 0.64 * step / steps, 0.01 + 2.85 * (1 - step / steps))


def _save(
    file: Path,
    module: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: dict[str, torch.Tensor],
    done: int,
) -> None:
    states = [optimizer.state_dict() for optimizer in optimizers]
    file.parent.mkdir(parents=True, exist_ok=True)
    saved = {"module": module.state_dict(), "optimizers": states, "average": average, "done": done}
    torch.save(saved, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)
