"""One step of training: forward, loss, backward, update."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from infra.devices import autocast
from infra.models.encoder import Encoder
from schemas.errors import TeachonceError
from schemas.keyed_hash import subkey
from schemas.train_config import Optim, TeacherTerm, TrainConfig
from trainer.augment import augment
from trainer.batch import Batch
from trainer.checkpoint import Trained
from trainer.dropped import taking_part
from trainer.ema import Ema
from trainer.heads import Heads, Widths
from trainer.losses import Parts
from trainer.losses.choice import choose
from trainer.parallel import ALONE, Ranks, freeze_unused, unsynchronised
from trainer.parts import parts_of
from trainer.passes import Features, Learned, Terms, learn_part
from trainer.reframe import reframe
from trainer.stages import head_hidden
from trainer.students import normalise

PROBE_PATCHES = 4

Decide = Callable[[str, object, str], None]
"""Prints an automatic decision and its reason."""


class Step(NamedTuple):
    """What a step found, still on the device: looking at it waits for the GPU."""

    parts: Parts
    """This rank's shares; their sums over all ranks are the losses of the batch."""
    counts: Tensor
    """float32 [2], this rank's: tokens without a direction, tokens that are not finite."""
    gradient_norm: Tensor
    """Before it was clipped."""


class Learner:
    """A student, its adapter heads and their optimiser, on one device of one or several ranks.

    What the paper leaves open: AdamW with torch's betas, weight decay on every parameter.
    """

    def __init__(
        self,
        config: TrainConfig,
        encoder: Encoder,
        teachers: Mapping[str, Widths],
        device: str,
        precision: str,
        ranks: Ranks = ALONE,
        decide: Decide = lambda what, choice, why: None,
    ) -> None:
        own = Widths(encoder.patch_width, encoder.cls_width)
        self.encoder = encoder
        self.heads = Heads(own, teachers, head_hidden(config), config.seed).to(device)
        # Convolutions are two to three times as fast so on a CPU; a ViT does not mind.
        self.encoder.model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.terms = {name: config.teachers.get(name, TeacherTerm()) for name in teachers}
        self.accumulate = 1 if config.optim.accumulate == "auto" else config.optim.accumulate
        self._parameters = [*self.encoder.model.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=config.optim.lr,
            weight_decay=config.optim.weight_decay,
            fused=device == "cuda",
        )
        ema = None if config.optim.ema is None else Ema(encoder, config.optim.ema)
        self.trained = Trained(encoder, self.heads, self.optimizer, ema)
        self._config, self._device, self._precision = config, device, precision
        self._ranks, self._decide = ranks, decide
        widest = max(max(each.tokens, each.cls or 0) for each in teachers.values())
        chosen = choose(config.loss, device, widest)
        self._impl = chosen.impl
        decide("loss.impl", *chosen)
        self._student = self._called()

    def step(self, number: int, batch: Batch) -> Step:
        """Learn from one batch, without waiting for the GPU.

        Args:
            number: of the step, from 1. It alone decides the learning rate and which teachers take
                part, and with the seed whatever the model draws (dropout, stochastic depth): no
                random state is to be restored when a run goes on.
            batch: this rank's rows.
        """
        learned = self._gradients(number, batch)
        while learned is None:
            learned = self._gradients(number, batch)
        optim = self._config.optim
        gradients = [value.grad for value in self._parameters if value.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if optim.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, optim.clip_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, optim)
        self.optimizer.step()
        if self.trained.ema is not None:
            self.trained.ema.update()
        return Step(learned.shares, learned.counts, norm)

    def _gradients(self, number: int, batch: Batch) -> Learned | None:
        """Gradient of the batch's loss in every parameter; None if the GPU's memory did not suffice
        and the batch is to be cut finer.

        What was added to a batch norm's running statistics until then stays in them.
        """
        self.optimizer.zero_grad()
        total = self._ranks.total(batch.weight.sum().to(self._device, non_blocking=True))
        live = taking_part(self.terms, self._config.seed, number)
        terms = Terms(
            factors={name: self.terms[name].weight for name in live},
            total=total,
            # Several ranks' gradients are averaged, and here each has its share of one mean.
            scale=self._ranks.world,
            loss=self._config.loss,
            impl=self._impl,
        )
        sums: Learned | None = None
        parts = list(parts_of(batch, self.accumulate))
        try:
            for index, part in enumerate(parts):
                if index < len(parts) - 1:
                    with unsynchronised([self._student, *self.heads.called]):
                        learned = self._learn(number, index, part, terms)
                else:
                    learned = self._learn(number, index, part, terms)
                sums = learned if sums is None else _added(sums, learned)
        except torch.OutOfMemoryError as error:
            self._cut_finer(len(batch.rows), error)
            return None
        return sums

    def _learn(self, number: int, index: int, part: Batch, terms: Terms) -> Learned:
        config = self._config
        # What a student draws is another in each part and on each rank, as in one large batch.
        torch.manual_seed(subkey(b"step", config.seed, number, self._ranks.rank, index))
        part = reframe(part.to(self._device), config.reframe, config.seed)
        pixels = augment(part, config.augment, config.seed)
        return learn_part(
            self._student,
            self.heads,
            normalise(pixels, self.encoder),
            part,
            terms,
            lambda: autocast(self._device, self._precision),
        )

    def _cut_finer(self, rows: int, error: torch.OutOfMemoryError) -> None:
        """Twice as many parts from now on. Raises TeachonceError where that cannot help."""
        alone = self._ranks.world == 1
        if self._config.optim.accumulate == "auto" and alone and self.accumulate < rows:
            self.accumulate *= 2
            self._decide(
                "accumulate", self.accumulate, "the GPU's memory did not suffice for larger parts"
            )
            return
        # The other ranks wait in a sum of gradients that this one would not come to.
        do = f"set optim.accumulate to {2 * self.accumulate}, or" if self.accumulate < rows else ""
        raise TeachonceError(
            f"the GPU's memory does not suffice for a batch of {rows} in {self.accumulate} parts: "
            f"{error}; {do} set student.grad_checkpointing, or lower optim.batch_size"
        ) from None

    def _called(self) -> nn.Module:
        """The student as it is called: compiled, and its gradients summed over ranks, if so."""
        student: nn.Module = Features(self.encoder)
        if self._ranks.world > 1:
            side = PROBE_PATCHES * self.encoder.patch_pixels
            probe = torch.zeros(1, 3, side, side, device=self._device)
            self.encoder.model.eval()
            freeze_unused(self.encoder.model, student(probe))
            self.encoder.model.train()
            self.heads.call_through(self._ranks.wrap)
        if self._config.compile:
            student.compile()
        return self._ranks.wrap(student)


def learning_rate(step: int, optim: Optim) -> float:
    """Of a step, from 1: a linear warm-up to `lr`, then that or half a cosine towards 0."""
    done = step - 1
    if done < optim.warmup_steps:
        return optim.lr * step / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    share = (done - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * share))


def _added(sums: Learned, more: Learned) -> Learned:
    shares = {
        name: {term: sums.shares[name][term] + value for term, value in terms.items()}
        for name, terms in more.shares.items()
    }
    return Learned(shares, sums.counts + more.counts)
