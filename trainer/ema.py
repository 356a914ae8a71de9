"""An exponential mean of a student's weights, which is what is handed on in its place."""

import copy

import torch

from infra.models.encoder import Encoder


class Ema:
    """mean <- decay x mean + (1 - decay) x weights after every step; the first one's weights are
    the first mean, so that nothing of what was drawn at random remains in it."""

    def __init__(self, student: Encoder, decay: float) -> None:
        self.encoder = copy.deepcopy(student)
        self.encoder.model.eval().requires_grad_(False)
        self._decay, self._begun = decay, False
        state = student.model.state_dict()
        pairs = [(mean, state[name]) for name, mean in self.encoder.model.state_dict().items()]
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the student's weights as they are now."""
        means, weights = map(list, zip(*self._averaged))
        if self._begun:
            torch._foreach_lerp_(means, weights, 1 - self._decay)
        else:
            torch._foreach_copy_(means, weights)
        for mean, count in self._counts:
            mean.copy_(count)
        self._begun = True

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from the mean of a checkpoint."""
        self.encoder.model.load_state_dict(state)
        self._begun = True
