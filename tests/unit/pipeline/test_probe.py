import copy
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from infra.store import Bytes, MemoryStore
from pipeline.probe import guard, probe, synthetic_pictures
from pipeline.teachers import LoadedTeacher, load_teacher
from schemas import layout
from schemas.errors import DamageError, TeacherError
from schemas.extract_config import Teacher
from schemas.measured import Probe
from schemas.sealed import seal, unseal

GRID = 4
Features = tuple[Tensor | None, Tensor]


@pytest.fixture(scope="module")
def loaded() -> LoadedTeacher:
    return load_teacher(
        Teacher(library="timm", model="test_vit", weights="random:0"), "float32", "cpu"
    )


@dataclass(frozen=True)
class Altered(LoadedTeacher):
    """A teacher whose record is that of another, and whose features are not."""

    change: Callable[[Tensor, Tensor], Features]

    def __call__(self, squares: list[np.ndarray]) -> Features:
        cls, tokens = super().__call__(squares)
        assert cls is not None
        return self.change(cls, tokens)


def altered(loaded: LoadedTeacher, change: Callable[[Tensor, Tensor], Features]) -> LoadedTeacher:
    return Altered(loaded.record, loaded.encoder, loaded.device, change)


def nudged(loaded: LoadedTeacher, share: float) -> LoadedTeacher:
    """Every weight moved by a share of the spread of its tensor."""
    encoder = copy.deepcopy(loaded.encoder)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in encoder.model.parameters():
            noise = torch.randn(weight.shape, generator=random)
            weight += share * weight.std(correction=0) * noise
    return replace(loaded, encoder=encoder)


def with_versions(loaded: LoadedTeacher, **versions: str) -> LoadedTeacher:
    known = {**loaded.record.versions, **versions}
    return replace(loaded, record=loaded.record.model_copy(update={"versions": known}))


def key_of(loaded: LoadedTeacher, grid: int = GRID) -> str:
    return layout.probe(loaded.record.fingerprint12, grid)


def test_synthetic_pictures__golden() -> None:
    """As FORMAT.md says, for ever."""
    noise, slow = synthetic_pictures(48)
    for picture in (noise, slow):
        assert (picture.shape, picture.dtype) == ((48, 48, 3), np.uint8)
    assert hashlib.sha256(noise.tobytes()).hexdigest() == (
        "e0340a1067a1a548432712648b04c099e8ccb85e22930c544b9d49962aa5e064"
    )
    assert hashlib.sha256(slow.tobytes()).hexdigest() == (
        "20227abfa4b47ae9ffe58856e93a73166cbc03dcc91204f24088fbf7f22e8fea"
    )
    assert slow[11, 30].tolist() == [255 * 30 // 48, 255 * 121 // 2304, 255 * 52 // 144]


@pytest.mark.parametrize("side", [1, 2, 7, 224])
def test_synthetic_pictures__no_turn_or_mirror_leaves_them(side: int) -> None:
    for picture in synthetic_pictures(side):
        turns = [
            np.rot90(start, turn) for start in (picture, picture[:, ::-1]) for turn in range(4)
        ]
        assert len({turned.tobytes() for turned in turns}) == (1 if side == 1 else 8)


def test_probe__keeps_what_the_teacher_says_to_the_bit(loaded: LoadedTeacher) -> None:
    found = probe(loaded, GRID, {"torch": "2"})
    cls, tokens = loaded(synthetic_pictures(loaded.record.pixels(GRID)))
    assert cls is not None
    for picture, vectors in enumerate(found.pictures):
        assert torch.equal(torch.tensor(vectors.cls), cls[picture])
        # Rows 0 to 3, columns 1, 3, 0, 2.
        assert torch.equal(torch.tensor(vectors.tokens), tokens[picture, [1, 7, 8, 14]])
    assert len(found.pictures) == 2
    assert unseal(seal(found), Probe, "probe.json") == found


@pytest.mark.parametrize("grid", [1, 2, 3, 5])
def test_probe__at_grids_of_few_tokens(loaded: LoadedTeacher, grid: int) -> None:
    assert [len(picture.tokens) for picture in probe(loaded, grid, {}).pictures] == [4, 4]


def test_guard__keeps_a_probe_once_for_each_grid(loaded: LoadedTeacher) -> None:
    store = MemoryStore()
    guard(store, loaded, GRID)
    kept = store.get(key_of(loaded))
    record = unseal(kept, Probe, "probe.json")
    assert record.versions["torch"] == loaded.record.versions["torch"]
    assert record.versions["hardware"]
    guard(store, loaded, GRID)
    assert list(store.keys("")) == [key_of(loaded)]
    assert store.get(key_of(loaded)) == kept
    guard(store, loaded, 2)
    assert set(store.keys("")) == {key_of(loaded), key_of(loaded, 2)}


def test_guard__lets_rounding_pass(loaded: LoadedTeacher) -> None:
    store = MemoryStore()
    guard(store, loaded, GRID)
    guard(store, nudged(loaded, 1e-3), GRID)
    guard(store, altered(loaded, lambda cls, tokens: (cls.half().float(), tokens)), GRID)


def test_guard__refuses_another_model_with_both_figures(loaded: LoadedTeacher) -> None:
    store = MemoryStore("memory://photos")
    guard(store, with_versions(loaded, torch="1.0", device="cuda"), GRID)
    with pytest.raises(TeacherError) as caught:
        guard(store, nudged(loaded, 3e-2), GRID)
    message = str(caught.value)
    assert f"teacher test_vit ({loaded.record.fingerprint12}) at grid {GRID}" in message
    assert "memory://photos" in message
    assert "cosine of its CLS vectors is 0.99" in message
    assert "of its tokens 0.999" in message
    assert "0.9999 is the least" in message
    assert "What differs: device was cuda, is cpu; torch was 1.0, is " in message
    assert "numpy" not in message
    assert key_of(loaded) in message
    assert "another `cache`" in message


@pytest.mark.parametrize(
    "change",
    [
        lambda cls, tokens: (cls, tokens.flip(1)),
        lambda cls, tokens: (cls, tokens.unflatten(1, (GRID, GRID)).flip(2).flatten(1, 2)),
        lambda cls, tokens: (cls, tokens[..., :-1]),
        lambda cls, tokens: (cls, torch.zeros_like(tokens)),
        lambda cls, tokens: (-cls, tokens),
        lambda cls, tokens: (None, tokens),
    ],
    ids=["turned", "mirrored", "narrower", "nothing", "opposite", "no CLS"],
)
def test_guard__refuses(
    loaded: LoadedTeacher, change: Callable[[Tensor, Tensor], Features]
) -> None:
    store = MemoryStore()
    guard(store, loaded, GRID)
    with pytest.raises(TeacherError, match="No recorded version differs"):
        guard(store, altered(loaded, change), GRID)


@pytest.mark.parametrize("grid", [2, 4, 7, 16])
def test_guard__notices_transposed_tokens_at_every_grid(loaded: LoadedTeacher, grid: int) -> None:
    """At grids 4, 7, 10, 13, 16 four tokens at equal distances would all lie on the diagonal."""
    store = MemoryStore()
    guard(store, loaded, grid)

    def transposed(cls: Tensor, tokens: Tensor) -> Features:
        return cls, tokens.unflatten(1, (grid, grid)).transpose(1, 2).flatten(1, 2)

    with pytest.raises(TeacherError, match=r"CLS vectors is 1\.000000"):
        guard(store, altered(loaded, transposed), grid)


def test_guard__a_teacher_without_cls(loaded: LoadedTeacher) -> None:
    store = MemoryStore()
    tokens_only = altered(loaded, lambda cls, tokens: (None, tokens))
    guard(store, tokens_only, GRID)
    guard(store, tokens_only, GRID)
    assert unseal(store.get(key_of(loaded)), Probe, "").pictures[0].cls is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_guard__features_that_are_not_finite(loaded: LoadedTeacher, bad: float) -> None:
    store = MemoryStore()
    broken = altered(loaded, lambda cls, tokens: (cls * bad, tokens))
    with pytest.raises(TeacherError, match=r"grid 4 gives features that are not finite"):
        guard(store, broken, GRID)
    assert list(store.keys("")) == []
    guard(store, loaded, GRID)
    with pytest.raises(TeacherError, match=r"grid 4 gives features that are not finite"):
        guard(store, broken, GRID)


def test_guard__a_damaged_probe_is_said_to_be_one(loaded: LoadedTeacher) -> None:
    store = MemoryStore()
    store.create(key_of(loaded), seal(probe(loaded, GRID, {}))[:-9])
    with pytest.raises(DamageError, match=r"probe\.json: the record does not match"):
        guard(store, loaded, GRID)


def test_guard__whoever_comes_second_compares_with_the_first(loaded: LoadedTeacher) -> None:
    other = nudged(loaded, 3e-2)

    class Overtaken(MemoryStore):
        def create(self, key: str, data: Bytes) -> None:
            if not list(self.keys("")):
                super().create(key, seal(probe(other, GRID, {})))
            super().create(key, data)

    with pytest.raises(TeacherError, match="says something else here"):
        guard(Overtaken(), loaded, GRID)
    guard(Overtaken(), other, GRID)


def test_guard__two_at_once(loaded: LoadedTeacher) -> None:
    store = MemoryStore()
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(guard, store, loaded, GRID) for _ in range(2)]:
            future.result()
    assert list(store.keys("")) == [key_of(loaded)]
