"""Adapter heads: from the student's features to each teacher's (EUPE, arXiv 2603.22387).

They live in training, and lie beside a finished student for whoever wants to speak as its teachers
did.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from schemas.keyed_hash import subkey

Kind = Literal["tokens", "cls"]


class Widths(NamedTuple):
    """Channels of an encoder's features, or of a teacher's."""

    tokens: int
    cls: int | None
    """None where there is no CLS."""


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
        self._called = dict(self.heads.items())

    def kinds(self, teacher: str) -> tuple[Kind, ...]:
        """Which heads a teacher has."""
        return ("tokens", "cls") if f"{teacher}-cls" in self.heads else ("tokens",)

    def predict(self, teacher: str, kind: Kind, features: Tensor) -> Tensor:
        """The student's features [..., width] as those of a teacher [..., the teacher's width]."""
        prediction: Tensor = self._called[f"{teacher}-{kind}"](features)
        return prediction

    @property
    def called(self) -> Iterable[nn.Module]:
        """What is called for each head."""
        return self._called.values()

    def call_through(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        """Call each head through what `wrap` makes of it; names of weights stay as they are."""
        self._called = {name: wrap(head) for name, head in self.heads.items()}


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
