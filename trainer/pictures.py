"""Where training gets a row's picture: from the data set by key, or from the cache's own pack."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from infra.redact import printable
from infra.sources import Source, open_source
from infra.store import ObjectStore
from schemas import layout
from schemas.errors import (
    CacheError,
    ConfigError,
    DamageError,
    ImageError,
    NotFound,
    TeachonceError,
)
from schemas.names import PACK_IMAGES
from schemas.records import PackCommit, PlanCommit
from schemas.sealed import unseal

HELD_PACKS = 4096
"""Commits of packs, of about 2 KB, that are held at a time."""


class Pictures(Protocol):
    def read(self, generation: int, image: int, key: str) -> bytes:
        """The encoded picture of a generation's `image`-th image.

        Raises:
            CacheError: it is not there, or not to be had.
        """

    def refuse(self, generation: int, image: int, key: str) -> TeachonceError:
        """What to raise where these are not the bytes that the teachers saw."""


class FromSource:
    """Pictures of the data set.

    Args:
        root: where it is now, if not where it was extracted from.

    Raises:
        ConfigError: it is not there.
    """

    def __init__(self, generations: Sequence[PlanCommit], root: str | None) -> None:
        self._sources: list[Source] = [
            open_source(root or commit.source, commit.columns, commit.limits.max_bytes)
            for commit in generations
        ]

    def read(self, generation: int, image: int, key: str) -> bytes:
        try:
            return self._sources[generation].read(key)
        except ImageError as error:
            raise CacheError(
                f"image {printable(key)}: {error}; it could be read when it was extracted. "
                "Set images.root if the data set has moved"
            ) from None

    def refuse(self, generation: int, image: int, key: str) -> TeachonceError:
        return CacheError(
            f"image {printable(key)}: has changed since it was extracted; run extract "
            "again and train on the new snapshot, or restore the picture"
        )


class FromPacks:
    """Pictures that `teachonce pack` copied.

    Raises:
        ConfigError: not all of them are packed.
    """

    def __init__(self, store: ObjectStore, generations: Sequence[PlanCommit]) -> None:
        self._store = store
        self._commits: OrderedDict[tuple[int, int], PackCommit] = OrderedDict()
        packed = list(store.keys(layout.PACK_COMMITS))
        wanted = sum(-(-commit.images // PACK_IMAGES) for commit in generations)
        if len(packed) < wanted:
            raise ConfigError(
                f"images.pack: {len(packed)} of {wanted} packs are in {store.url}; run "
                f"`teachonce pack {store.url}` first, or leave images.pack away"
            )

    def read(self, generation: int, image: int, key: str) -> bytes:
        commit, place = self._find(generation, image)
        if commit.offsets[place] < 0:
            raise CacheError(
                f"image {printable(key)}: could not be read when it was packed; restore it, remove "
                f"{layout.pack_commit(generation, commit.number)} and run `teachonce pack` again"
            )
        first = commit.offsets[place]
        try:
            return bytes(
                self._store.get_range(commit.object.key, first, first + commit.sizes[place])
            )
        except NotFound:
            raise self._damage(commit, "is missing") from None

    def refuse(self, generation: int, image: int, key: str) -> TeachonceError:
        commit, _ = self._find(generation, image)
        return self._damage(commit, f"image {printable(key)} is not what the teachers saw")

    def _find(self, generation: int, image: int) -> tuple[PackCommit, int]:
        """The commit of an image's pack, and the image's place in it."""
        number, place = divmod(image, PACK_IMAGES)
        held = self._commits.get((generation, number))
        if held is None:
            key = layout.pack_commit(generation, number)
            try:
                held = unseal(self._store.get(key), PackCommit, key)
            except NotFound:
                raise DamageError(f"{self._store.url}: {key} is missing", key=key) from None
            self._commits[generation, number] = held
            if len(self._commits) > HELD_PACKS:
                self._commits.popitem(last=False)
        return held, place

    def _damage(self, commit: PackCommit, what: str) -> DamageError:
        key, remove = commit.object.key, layout.pack_commit(commit.generation, commit.number)
        return DamageError(
            f"{self._store.url}: {key}: {what}; remove {remove} and run `teachonce pack` again",
            key=key,
        )
