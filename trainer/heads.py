"""Adapter heads: from the student's features to each teacher's (EUPE, arXiv 2603.22387).

They live in training only; a finished student leaves without them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from schemas.keyed_hash import subkey


class Widths(NamedTuple):
    """Channels of an encoder's features, or of a teacher's."""

    tokens: int
    cls: int | None
    """None where there is no CLS."""


class Prediction(NamedTuple):
    """What the student says one teacher said."""

    tokens: Tensor
    """[batch, student tokens, the teacher's patch width]."""
    cls: Tensor | None
    """[batch, the teacher's CLS width]; None where the teacher has no CLS."""


class Heads(nn.Module):
    """For each teacher a head for patch tokens and, where it has a CLS, one for that.

    A head's first weights depend on the seed, the teacher's name and the kind alone: another
    teacher in the run does not change them.
    """

    def __init__(
        self, student: Widths, teachers: Mapping[str, Widths], hidden: int, seed: int
    ) -> None:
        super().__init__()
        assert student.cls is not None
        self.teachers = tuple(teachers)
        # A key such as "dinov3-cls" is never the name of one of ModuleDict's own methods, which a
        # teacher's name may be.
        self.heads = nn.ModuleDict()
        for name, widths in teachers.items():
            with _seeded(subkey(b"heads", seed, name, "tokens")):
                self.heads[f"{name}-tokens"] = adapter_head(student.tokens, hidden, widths.tokens)
            if widths.cls is not None:
                with _seeded(subkey(b"heads", seed, name, "cls")):
                    self.heads[f"{name}-cls"] = adapter_head(student.cls, hidden, widths.cls)

    def forward(self, cls: Tensor, tokens: Tensor) -> dict[str, Prediction]:
        """The student's CLS [batch, width] and tokens [batch, count, width], as each teacher's."""
        return {
            name: Prediction(
                tokens=self.heads[f"{name}-tokens"](tokens),
                cls=self.heads[f"{name}-cls"](cls) if f"{name}-cls" in self.heads else None,
            )
            for name in self.teachers
        }


def adapter_head(width: int, hidden: int, target: int) -> nn.Sequential:
    """Linear - LayerNorm - GELU - Linear over the last dimension, the linear ones without bias."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False),
        nn.LayerNorm(hidden),
        nn.GELU(),
        nn.Linear(hidden, target, bias=False),
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
