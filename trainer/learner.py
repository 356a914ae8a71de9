"""One step of training: forward, loss, backward, update."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from infra.devices import autocast
from infra.models.encoder import Encoder
from schemas.keyed_hash import subkey
from schemas.train_config import Optim, TeacherTerm, TrainConfig
from trainer.batch import Batch
from trainer.heads import Heads, Widths
from trainer.losses import Parts, distillation_loss
from trainer.students import normalise


class Learner:
    """A student, its adapter heads and their optimiser, on one device.

    What the paper leaves open: AdamW with torch's betas, weight decay on every parameter.
    """

    def __init__(
        self,
        config: TrainConfig,
        encoder: Encoder,
        teachers: Mapping[str, Widths],
        device: str,
        precision: str,
    ) -> None:
        own = Widths(encoder.patch_width, encoder.cls_width)
        self.encoder = encoder
        self.heads = Heads(own, teachers, config.head.hidden, config.seed).to(device)
        self.encoder.model.to(device).train()
        parameters = [*self.encoder.model.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=config.optim.lr, weight_decay=config.optim.weight_decay
        )
        self._config = config
        self._factors = {name: config.teachers.get(name, TeacherTerm()).weight for name in teachers}
        self._parameters = parameters
        self._device = device
        self._precision = precision

    def step(self, number: int, batch: Batch) -> tuple[Tensor, Parts]:
        """Learn from one batch; returns the loss and its parts without waiting for the GPU.

        Args:
            number: of the step, from 1. It alone decides the learning rate, and with the seed
                whatever the model draws (dropout, stochastic depth): nothing else is to be
                restored when a run goes on.
        """
        config = self._config
        torch.manual_seed(subkey(b"step", config.seed, number))
        batch = batch.to(self._device)
        with autocast(self._device, self._precision):
            predictions = self.heads(*self.encoder(normalise(batch.pixels, self.encoder)))
        total, parts = distillation_loss(
            predictions, batch.targets, batch.weight, self._factors, config.loss
        )
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        if config.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, config.optim.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, config.optim)
        self.optimizer.step()
        return total.detach(), parts


def learning_rate(step: int, optim: Optim) -> float:
    """Of a step, from 1: a linear warm-up to `lr`, then that or half a cosine towards 0."""
    done = step - 1
    if done < optim.warmup_steps:
        return optim.lr * step / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    share = (done - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * share))
