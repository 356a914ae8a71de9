"""Pictures packed beside the features: training needs the cache alone, and sees the same."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from infra.store import LocalStore
from pipeline import gc, pack
from schemas.errors import CacheError, ConfigError, DamageError
from schemas.options import GcOptions, PackOptions
from tests.caches import VIT, Quiet, config_of, extract_here, pictures, verify_here
from tests.unit.trainer.streams import assert_equal, epoch_of, joined
from trainer import CacheStream

PICTURES, LATER = 300, 9
EMPTY = "empty.jpg"


class Packed:
    def __init__(self, folder: Path) -> None:
        self.cache, self.source = folder / "cache", pictures(folder / "pictures", PICTURES)
        self.store = LocalStore(self.cache)
        (self.source / EMPTY).write_bytes(b"")
        self.extract()

    def extract(self) -> None:
        changes = {"views": {"per_image": 2}, "teachers": {"vit": VIT}}
        extract_here(config_of(self.cache, self.source, **changes))

    def pack(self, **options: Any) -> dict[str, Any]:
        return pack.run(PackOptions(cache=str(self.cache), **options), Quiet()).result

    def served(self, **options: Any) -> dict[str, Any]:
        stream = CacheStream(str(self.cache), pixels=32, batch_size=64, **options)
        batches = epoch_of(stream)
        # Not tests.unit.trainer's two teachers: rows, pixels and weights are what matters here.
        return {name: values for name, values in joined(batches).items() if "vit" not in name}

    def objects(self) -> list[Path]:
        return sorted((self.cache / "images").rglob("*.tar"))


@pytest.fixture
def packed(tmp_path: Path) -> Packed:
    return Packed(tmp_path)


def test_pack__serves_what_the_data_set_served(packed: Packed) -> None:
    expected = packed.served()
    told = packed.pack()
    assert (told["images"], told["bad"]) == (PICTURES + 1, 0)
    for path in packed.source.iterdir():
        path.unlink()
    packed.source.rmdir()
    assert_equal(packed.served(pack=True), expected)
    with pytest.raises(ConfigError, match="no picture, Parquet file"):
        packed.served()


def test_pack__again_writes_only_what_is_new(packed: Packed) -> None:
    first = packed.pack()
    assert first["bytes_written"] > 0
    before = {path: path.stat().st_mtime_ns for path in packed.objects()}
    assert packed.pack()["bytes_written"] == 0
    pictures(packed.source, LATER, first=1000)
    packed.extract()
    with pytest.raises(ConfigError, match=r"3 of 4 packs are in .* run `teachonce pack"):
        packed.served(pack=True)
    packed.pack()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(packed.objects()) == 4
    assert_equal(packed.served(pack=True), packed.served())


def test_pack__is_a_tar_of_the_pictures_as_they_are(packed: Packed) -> None:
    packed.pack()
    found = []
    for path in packed.objects():
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
            found += [archive.extractfile(member).read() for member in archive]  # type: ignore[union-attr]
    assert sorted(found) == sorted(path.read_bytes() for path in packed.source.iterdir())


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_pack__damage_is_found_and_never_trained_on(packed: Packed, damage: str) -> None:
    packed.pack()
    path = packed.objects()[1]
    data = bytearray(path.read_bytes())
    for place in range(600, len(data), 1024):
        data[place] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[: len(data) // 3])
    with pytest.raises(DamageError, match="and run `teachonce pack` again"):
        packed.served(pack=True)
    told = verify_here(packed.cache).result["damage"]
    assert [line.partition(":")[0] for line in told] == [str(path.relative_to(packed.cache))]
    (packed.cache / "commits/images/000000/0/1.json").unlink()
    packed.pack()
    assert packed.served(pack=True)["weight"].sum() == 2 * PICTURES
    assert verify_here(packed.cache).status == 0


def test_pack__a_picture_that_has_gone_is_refused_by_name(packed: Packed) -> None:
    (packed.source / "0007.jpg").unlink()
    assert packed.pack()["bad"] == 1
    with pytest.raises(CacheError, match=r"image 0007\.jpg: could not be read when it was packed"):
        packed.served(pack=True)


def test_gc__keeps_packs_and_removes_what_lost_a_race(packed: Packed) -> None:
    packed.pack()
    lost = packed.cache / "images/000000/1.abc.tar"
    lost.write_bytes(b"a loser's")
    told = gc.run(GcOptions(cache=str(packed.cache), delete=True), Quiet()).result
    assert told["deleted"] == 1
    assert not lost.exists()
    assert_equal(packed.served(pack=True), packed.served())
