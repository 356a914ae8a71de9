"""A set in another codec is made from float16, without pictures and without teachers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.store import LocalStore
from pipeline.derive import covering
from pipeline.job import Source
from schemas.errors import ConfigError, DamageError
from schemas.layout import SetPath
from schemas.records import ObjectRecord
from tests.caches import CNN, VIT, Quiet, commits, config_of, extract_here, pictures, verify_here
from trainer.cache import CacheReader

TEACHERS = {"vit": VIT, "cnn": {**CNN, "grids": [1]}}
TOLD = {
    "views": {"per_image": 2},
    "teachers": TEACHERS,
    "tolerate_bad_images": 0.1,
    "rows_per_shard": 32,
}
INT8 = {"tokens": "int8"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, one of them bad, and their cache in fp16."""
    folder = tmp_path_factory.mktemp("fp16")
    source = pictures(folder / "pictures", 40)
    (source / "0003.jpg").write_bytes(b"no picture")
    extract_here(config_of(folder / "cache", source, **TOLD))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> dict[str, Any]:
    """A copy of it, and what it was configured by."""
    shutil.copytree(made, tmp_path / "own")
    return {"cache": tmp_path / "own/cache", "source": tmp_path / "own/pictures", **TOLD}


def codes(cache: Path, name: str, codec: str) -> list[np.ndarray[Any, Any]]:
    reader = CacheReader(str(cache), teachers={name: None}, codecs={name: codec})
    return [reader.read_block(0, block)[1][name] for block in range(2)]


@pytest.mark.parametrize("codec", [INT8, {"tokens": "int4"}, {"tokens": "variable", "bits": 3}])
def test_extract__another_codec_needs_no_picture_and_no_forward(
    place: dict[str, Any], codec: dict[str, Any]
) -> None:
    told = {**place, "codec": {**codec, "min_cosine": 0.5}, "rows_per_shard": 64}
    terminal = Quiet()
    outcome = extract_here(config_of(**told), terminal)
    assert outcome.result["teacher_forwards"] == 0
    assert outcome.result["decodes"] == 0
    assert outcome.result["shards_written"] > 0
    assert sum("no forward" in line for line in terminal.lines) == 2
    assert verify_here(place["cache"]).status == 0


def test_extract__derived_codes_are_those_of_the_stored_features(place: dict[str, Any]) -> None:
    extract_here(config_of(**place, codec=INT8))
    exact = codes(place["cache"], "vit", "fp16")
    for stored, halves in zip(codes(place["cache"], "vit", "int8"), exact):
        values = halves.astype(np.float32)
        scale = np.abs(values).max(-1, keepdims=True) / np.float32(127)
        scale = scale.astype(np.float16).astype(np.float32)
        wanted = np.rint(np.divide(values, scale, out=np.zeros_like(values), where=scale > 0))
        found = stored[..., : wanted[0].size].view(np.int8).reshape(wanted.shape)
        assert np.array_equal(found, wanted.astype(np.int8))


def test_extract__bad_rows_and_cls_are_those_of_the_source(place: dict[str, Any]) -> None:
    extract_here(config_of(**place, codec=INT8))
    store = LocalStore(place["cache"])
    tables = {}
    for key, commit in commits(store).items():
        path = SetPath.parse(commit.set)
        tables[path.codec_label, path.fingerprint12, commit.first_row] = (key, commit)
    assert len(tables) == 2 * len({place[1:] for place in tables})
    for (label, fp12, first), (_, commit) in tables.items():
        other = tables["int8" if label == "fp16" else "fp16", fp12, first][1]
        assert (commit.ok, commit.bad) == (other.ok, other.bad)
    reader = CacheReader(str(place["cache"]), codecs={"vit": "int8", "cnn": "fp16"})
    assert sum(int((~reader.read_block(0, n)[0].sets["vit"].ok).sum()) for n in range(3)) == 2


def test_extract__a_damaged_source_is_named_and_nothing_is_made_of_it(
    place: dict[str, Any],
) -> None:
    (key,) = [
        commit.tokens.key
        for commit in commits(LocalStore(place["cache"])).values()
        if commit.first_row == 32 and "g1" in commit.set
    ]
    data = bytearray((place["cache"] / key).read_bytes())
    data[-100] ^= 1
    (place["cache"] / key).write_bytes(data)
    with pytest.raises(DamageError, match=key.replace(".", r"\.")):
        extract_here(config_of(**place, codec=INT8))


def test_extract__rows_that_fp16_lacks_are_computed(place: dict[str, Any]) -> None:
    pictures(place["source"], 20, first=40)
    outcome = extract_here(config_of(**place, codec=INT8))
    assert outcome.result["teacher_forwards"] == 2 * 2 * 20
    assert verify_here(place["cache"], against_teacher=200).status == 0


def test_extract__a_codec_that_loses_too_much_is_refused(place: dict[str, Any]) -> None:
    told = {**place, "codec": {"tokens": "variable", "bits": 1.5, "min_cosine": 0.9999}}
    with pytest.raises(ConfigError, match=r"variable1\.5\.pca .*min_cosine asks for 0\.9999"):
        extract_here(config_of(**told))
    labels = {
        SetPath.parse(each.set).codec_label for each in commits(LocalStore(place["cache"])).values()
    }
    assert labels == {"fp16"}


def test_covering__all_of_a_stretch_or_nothing() -> None:
    nothing = ObjectRecord(key="", size=0, sha256="")
    sources = [Source(first, 32, 32, nothing, nothing) for first in (0, 32, 96)]
    assert covering(sources, 0, 64) == tuple(sources[:2])
    assert covering(sources, 16, 32) == tuple(sources[:2])
    assert covering(sources, 32, 64) == ()
    assert covering(sources, 96, 32) == (sources[2],)
    assert covering([], 0, 32) == ()
