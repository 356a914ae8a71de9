"""Teacher dropping: which teachers take part in a step."""

from collections.abc import Mapping

from schemas.keyed_hash import uniforms
from schemas.train_config import TeacherTerm

KEY = b"teacher drop"


def taking_part(terms: Mapping[str, TeacherTerm], seed: int, step: int) -> list[str]:
    """Teachers of a step in their order, the same on every rank and in every repetition.

    Where the draws leave all of them out, the one that came closest to staying stays.
    """
    spare = {
        name: uniforms(f"{seed}/{step}/{name}", KEY, 1)[0] - term.drop
        for name, term in terms.items()
    }
    return [name for name, left in spare.items() if left >= 0] or [
        max(spare, key=spare.__getitem__)
    ]
