"""The probe: what a teacher says of two synthetic pictures, kept beside its features, so that a
changed library or machine is noticed before its features are mixed with those that are there."""

import hashlib

import numpy as np
import numpy.typing as npt
from torch import Tensor

from infra.pixels.views import Pixels
from infra.provenance import hardware
from infra.store import ObjectStore
from pipeline.teachers import LoadedTeacher
from schemas import layout
from schemas.errors import AlreadyExists, TeacherError
from schemas.measured import Probe, ProbeVectors
from schemas.sealed import seal, unseal

MIN_COSINE = 0.9999
"""Less alike than this are features of one model in another library, or in other numbers."""
_COLUMNS = (1, 3, 0, 2)
"""Of the tokens kept, by row. Whatever turns or mirrors a grid brings others to their places; on
the diagonal a transposed grid would not be noticed."""


def synthetic_pictures(side: int) -> list[Pixels]:
    """Two pictures, uint8 RGB [side, side, 3]: noise, and slow changes that no turn or mirror
    leaves as they are. Made of whole numbers, the same everywhere."""
    digest = hashlib.shake_256(b"teachonce probe").digest(side * side * 3)
    noise = np.frombuffer(digest, np.uint8).reshape(side, side, 3)
    y, x = np.mgrid[:side, :side]
    channels = (255 * x // side, 255 * y * y // side**2, 255 * (x + 2 * y) // (3 * side))
    return [noise, np.stack(channels, axis=-1).astype(np.uint8)]


def probe(loaded: LoadedTeacher, grid: int, versions: dict[str, str]) -> Probe:
    """What the teacher says of the synthetic pictures, in one forward of both.

    Args:
        versions: libraries and devices to be recorded with it.

    Raises:
        TeacherError: the features are not finite.
    """
    cls, tokens = loaded(synthetic_pictures(loaded.record.pixels(grid)))
    if not all(part.isfinite().all() for part in (cls, tokens) if part is not None):
        raise TeacherError(
            f"{_name(loaded, grid)} gives features that are not finite for a synthetic picture in "
            f"{loaded.record.precision}; set its precision to bfloat16 or float32"
        )
    kept = tokens[:, _kept_tokens(grid)]
    pictures = [
        ProbeVectors(cls=None if cls is None else _floats(cls[index]), tokens=_rows(kept[index]))
        for index in range(len(tokens))
    ]
    return Probe(
        fingerprint=loaded.record.fingerprint,
        grid=grid,
        pictures=tuple(pictures),
        versions=versions,
    )


def guard(store: ObjectStore, loaded: LoadedTeacher, grid: int) -> None:
    """Keep a teacher's probe at a grid, or compare it with the one that is kept.

    Raises:
        TeacherError: here the teacher says something else than when its features were begun.
        DamageError: the probe that is kept is damaged.
    """
    here = probe(loaded, grid, {**loaded.record.versions, "hardware": hardware()})
    key = layout.probe(loaded.record.fingerprint12, grid)
    try:
        store.create(key, seal(here))
    except AlreadyExists:
        kept = unseal(store.get(key), Probe, key)
    else:
        return
    cls = _cosine(_cls_numbers(kept), _cls_numbers(here))
    tokens = _cosine(_token_numbers(kept), _token_numbers(here))
    if min(cls, tokens) < MIN_COSINE:
        raise TeacherError(
            f"{_name(loaded, grid)} says something else here than when its features in "
            f"{store.url} were begun: the cosine of its CLS vectors is {cls:.6f}, of its tokens "
            f"{tokens:.6f}, and {MIN_COSINE} is the least. "
            f"{_differences(kept.versions, here.versions)} Install the versions that stand in "
            f"{key}, take the hardware that stands there, or name another `cache`"
        )


def _name(loaded: LoadedTeacher, grid: int) -> str:
    record = loaded.record
    model = record.model or record.weights
    return f"teacher {model} ({record.fingerprint12}) at grid {grid}"


def _kept_tokens(grid: int) -> list[int]:
    """Row-major places of four tokens, spread over a grid x grid."""
    return [
        row * (grid - 1) // 3 * grid + column * (grid - 1) // 3
        for row, column in enumerate(_COLUMNS)
    ]


def _rows(vectors: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(_floats(vector) for vector in vectors)


def _floats(vector: Tensor) -> tuple[float, ...]:
    return tuple(vector.tolist())


def _cls_numbers(probe: Probe) -> npt.NDArray[np.float64]:
    return _flat([() if picture.cls is None else picture.cls for picture in probe.pictures])


def _token_numbers(probe: Probe) -> npt.NDArray[np.float64]:
    return _flat([token for picture in probe.pictures for token in picture.tokens])


def _flat(vectors: list[tuple[float, ...]]) -> npt.NDArray[np.float64]:
    return np.array([number for vector in vectors for number in vector], np.float64)


def _cosine(kept: npt.NDArray[np.float64], here: npt.NDArray[np.float64]) -> float:
    """1 for what is equal, nothing included; 0 where there are not as many numbers."""
    if np.array_equal(kept, here):
        return 1.0
    if kept.shape != here.shape:
        return 0.0
    lengths = float(np.linalg.norm(kept) * np.linalg.norm(here))
    return float(kept @ here) / lengths if lengths else 0.0


def _differences(kept: dict[str, str], here: dict[str, str]) -> str:
    found = [
        f"{name} was {kept.get(name, 'not there')}, is {here.get(name, 'not there')}"
        for name in sorted(kept.keys() | here.keys())
        if kept.get(name) != here.get(name)
    ]
    return f"What differs: {'; '.join(found)}." if found else "No recorded version differs."
