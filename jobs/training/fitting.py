"""One training loop for every part of the tiny models: seeded by step, averaged weights, checkpoints to resume from.
Knows torch; nothing of what is trained or on what."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

CHECKPOINT_SECONDS = 60


def _say(line: str) -> None:
    print(line, flush=True)


def fit(
    name: str,
    module: torch.nn.Module,
    loss: Callable[[torch.Generator], torch.Tensor],
    steps: int,
    learning_rate: float,
    folder: Path,
    decay: float = 0.999,
    report: Callable[[str], None] = _say,
) -> None:
    """Train to the last step and leave the averaged weights in the module, in eval mode.

    Args:
        loss: the loss of one batch; all its randomness comes from the generator, seeded by the step.
        folder: of the checkpoint `name`.pt; a stopped run resumes from it, with the batches it would have had.
        decay: of the average of the weights, at its longest.
    """
    checkpoint = folder / f"{name}.pt"
    optimizer = torch.optim.AdamW(module.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    average = {key: value.detach().clone() for key, value in module.named_parameters()}
    done = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        average, done = saved["average"], saved["done"]
    module.train()
    started = saved_at = time.monotonic()
    first, losses = done, []
    while done < steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(done, steps)
        value = loss(torch.Generator().manual_seed(done))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
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
            _save(checkpoint, module, optimizer, average, done)
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
    """Share of the learning rate: a short rise, then a cosine down to a hundredth."""
    rise = max(1, min(200, steps // 10))
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def _save(
    file: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, torch.Tensor], done: int
) -> None:
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "done": done}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)
