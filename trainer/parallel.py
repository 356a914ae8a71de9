"""Several processes on one batch: torchrun starts them, DistributedDataParallel adds gradients up.

    torchrun --nproc-per-node 8 trainer/train.py --config F

Each rank takes its part of every batch. Only rank 0 writes and prints.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from schemas.errors import ConfigError, ResumeError


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Number of this process on its machine, and so of its GPU."""

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, in place; waits for no GPU."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def wrap(self, module: nn.Module) -> nn.Module:
        """What to call in `module`'s place so that gradients are the mean over all ranks."""
        if self.world == 1:
            return module
        on_gpu = next(module.parameters()).device.type == "cuda"
        return DistributedDataParallel(
            module, device_ids=[self.local] if on_gpu else None, gradient_as_bucket_view=True
        )

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            dist.barrier()

    def agree(self, step: int, out: str) -> None:
        """Check that all ranks go on from the same step.

        Raises:
            ResumeError: they do not, because they see different folders.
        """
        steps = [step]
        if self.world > 1:
            steps = [0] * self.world
            dist.all_gather_object(steps, step)
        if len(set(steps)) > 1:
            raise ResumeError(
                f"{out}: ranks 0 to {self.world - 1} find checkpoints of steps {steps}; `out` must "
                "be one folder that all of them share"
            )


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """This process's ranks, as torchrun's environment has them; alone without it.

    Raises:
        ConfigError: there are fewer GPUs on this machine than processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    ranks = Ranks(int(os.environ["RANK"]), world, int(os.environ["LOCAL_RANK"]))
    if device == "cuda":
        if ranks.local >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started process {ranks.local} on a machine with "
                f"{torch.cuda.device_count()} GPUs; lower --nproc-per-node"
            )
        torch.cuda.set_device(ranks.local)
    if not ranks.first:
        # One object on standard output is one process's. Errors, on standard error, are everyone's.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def unsynchronised(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it gradients stay on their rank; the next backward outside adds them all up."""
    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield


def freeze_unused(model: nn.Module, outputs: Iterable[Tensor]) -> None:
    """Freeze what `outputs` do not depend on: DistributedDataParallel would wait for its gradient.

    It has none anyway, so an optimiser does not move it either way.
    """
    used: set[int] = set()
    seen: set[Any] = set()
    queue: list[Any] = [output.grad_fn for output in outputs]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            used.add(id(node.variable))
        queue += [function for function, _ in node.next_functions]
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in used)
