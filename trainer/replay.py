"""The view that the teachers saw, made again from its picture, at the student's size."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from infra.pixels.decode import decode
from infra.pixels.views import draws_of_row, pixels_digest, see
from infra.redact import printable
from schemas.errors import CacheError, ImageError
from schemas.records import PlanCommit
from schemas.spans import images_and_views
from trainer.cache import Block
from trainer.pictures import Pictures


class Replay:
    """Views of a cache's rows."""

    def __init__(self, generations: Sequence[PlanCommit], pictures: Pictures) -> None:
        self._generations, self._pictures = generations, pictures

    def see(self, block: Block, generation: int, row: int, side: int) -> npt.NDArray[np.uint8]:
        """The stored view [side, side, 3] of a row of a block.

        Raises:
            CacheError: it is not what the teachers saw: another picture, to the byte, or where a
                teacher saw this very size, other pixels.
        """
        line = {name: block.plan[name][row].as_py() for name in block.plan.column_names}
        commit, key = self._generations[generation], line["key"]
        inside = np.array([block.first_row - commit.first_row + row])
        image = int(images_and_views(commit, inside)[0][0])
        data = self._pictures.read(generation, image, key)
        sha256 = hashlib.sha256(data).digest()
        if any(part.image_sha256[row] != sha256 for part in block.sets.values()):
            raise self._pictures.refuse(generation, image, key)
        try:
            decoded = decode(data, commit.limits)
        except ImageError as error:
            raise CacheError(
                f"image {printable(key)}: {error}; it could be decoded when it was extracted: "
                "install the Pillow version that teacher.json names"
            ) from None
        square = see(decoded, draws_of_row(line), commit.views, side)
        _refuse_other_pixels(block, row, key, square)
        return square


def _refuse_other_pixels(block: Block, row: int, key: str, square: npt.NDArray[np.uint8]) -> None:
    for part in block.sets.values():
        if part.pixels == len(square) and part.pixels_sha256[row] != pixels_digest(square):
            raise CacheError(
                f"image {printable(key)}: decodes to other pixels here than where it was "
                "extracted; install the Pillow version that teacher.json names"
            )
