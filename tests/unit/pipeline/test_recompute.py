"""`verify --against-teacher`: whatever is not what its teacher says of its picture is found."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import save_file

from infra.models.timm_encoder import build_timm
from pipeline import verify
from schemas import shard
from schemas.errors import ConfigError, TeacherError
from schemas.layout import SetPath
from schemas.options import VerifyOptions
from tests.builders import encoded, photograph, photograph_bytes
from tests.caches import CNN, VIT, Array, Quiet, config_of, extract_here, pictures, verify_here
from tests.unit.pipeline.forged import VIEWS, Extracted, compared, forge, with_column

PICTURES = 20
ROWS = PICTURES * VIEWS


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recompute")
    pictures(folder / "pictures", PICTURES)
    Extracted(folder).extract()
    shutil.copytree(folder, folder.with_name("pristine"))
    return folder


@pytest.fixture
def extracted(pristine: Path) -> Iterator[Extracted]:
    """The same for every test, at the place where the cache says that its pictures are."""
    yield Extracted(pristine)
    shutil.rmtree(pristine)
    shutil.copytree(pristine.with_name("pristine"), pristine)


def test_verify__a_clean_cache_is_what_its_teachers_say(extracted: Extracted) -> None:
    outcome = extracted.verify()
    found = compared(outcome)
    assert outcome.status == 0
    assert found.keys() == extracted.sets
    assert len(found) == 4
    for entry in found.values():
        figures = [entry.pop(name) for name in ("cosine_min", "cosine_mean", "cls_cosine_min")]
        assert figures == pytest.approx([1, 1, 1], abs=1e-5)
        assert entry == {
            "rows": ROWS,
            "rows_damaged": 0,
            "pictures_changed": 0,
            "pixels_different": 0,
            "faults": [],
        }


def test_verify__runs_no_teacher_unless_asked(extracted: Extracted) -> None:
    assert verify_here(extracted.cache).result["against_teacher"] is None


def test_verify__compares_as_many_rows_as_asked(extracted: Extracted) -> None:
    assert [entry["rows"] for entry in compared(extracted.verify(7)).values()] == [7] * 4


def test_verify__photometric_views_and_later_ones_replay(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 12)
    extracted = Extracted(tmp_path, views={"per_image": 3, "photometric": {}})
    extracted.extract()
    extracted.extract(views={"per_image": 5, "photometric": {}})
    outcome = extracted.verify()
    assert outcome.status == 0
    for entry in compared(outcome).values():
        assert (entry["rows"], entry["pixels_different"]) == (12 * 5, 0)


def test_verify__other_weights_at_the_same_place_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 4)
    file = tmp_path / "vit.safetensors"
    extracted = Extracted(tmp_path, teachers={"vit": {**VIT, "weights": str(file)}})
    save_file(build_timm("test_vit", {}, "random:1").model.state_dict(), file)
    extracted.extract()
    assert extracted.verify().status == 0
    save_file(build_timm("test_vit", {}, "random:3").model.state_dict(), file)
    with pytest.raises(TeacherError) as refused:
        extracted.verify()
    fp12 = extracted.teacher_of(min(extracted.sets)).fingerprint12
    for words in (str(file), f"the cache is of {fp12}", "other than then: tensors_sha256", "back"):
        assert words in str(refused.value)
    file.unlink()
    with pytest.raises(TeacherError, match=r"no such file; bring back"):
        extracted.verify()


def test_verify__a_row_of_another_teacher_is_found(extracted: Extracted) -> None:
    path = extracted.set_of("test_vit", 2)

    def swap(rows: Array, told: pa.Table) -> tuple[Array, pa.Table]:
        rows = rows.copy()
        rows[5] = rows[9]
        return rows, told

    forge(extracted.cache, path, swap)
    assert verify_here(extracted.cache).status == 0
    outcome = extracted.verify()
    found = compared(outcome)
    (fault,) = found[path]["faults"]
    assert outcome.status == 1
    assert fault.startswith("row 5 (")
    assert "of its CLS 1.0" in fault
    assert found[path]["cosine_min"] < 0.9 < found[path]["cosine_mean"]
    assert all(entry["faults"] == [] for name, entry in found.items() if name != path)
    assert any(fault in line for line in extracted.said.lines)


def test_verify__another_cls_vector_is_found(extracted: Extracted) -> None:
    path = extracted.set_of("test_vit", 1)

    def mirror(rows: Array, told: pa.Table) -> tuple[Array, pa.Table]:
        vectors = np.asarray(told["cls"].combine_chunks().flatten()).copy()
        vectors[:64] *= -1
        flat = pa.array(vectors)
        return rows, with_column(told, "cls", pa.FixedSizeListArray.from_arrays(flat, 64))

    forge(extracted.cache, path, mirror)
    assert verify_here(extracted.cache).status == 0
    outcome = extracted.verify()
    assert outcome.status == 1
    (fault,) = compared(outcome)[path]["faults"]
    assert fault.startswith("row 0 (")
    assert compared(outcome)[path]["cls_cosine_min"] == pytest.approx(-1, abs=1e-3)


def test_verify__a_wrong_digest_of_pixels_is_found(extracted: Extracted) -> None:
    path = extracted.set_of("test_vit", 1)

    def other_pixels(rows: Array, told: pa.Table) -> tuple[Array, pa.Table]:
        digests = told["pixels_sha256"].to_pylist()
        digests[3] = bytes(32)
        return rows, with_column(told, "pixels_sha256", pa.array(digests, pa.binary(32)))

    forge(extracted.cache, path, other_pixels)
    assert verify_here(extracted.cache).status == 0
    outcome = extracted.verify()
    entry = compared(outcome)[path]
    assert (outcome.status, entry["pixels_different"]) == (1, 1)
    (fault,) = entry["faults"]
    assert fault.startswith("row 3 (")
    assert "other pixels" in fault
    assert "cosine of its tokens 1.0" in fault


def test_verify__changed_pictures_are_named_and_no_damage(extracted: Extracted) -> None:
    (extracted.source / "0003.jpg").write_bytes(encoded(photograph(3), "JPEG", quality=40))
    (extracted.source / "0004.jpg").unlink()
    (extracted.source / "0005.jpg").write_bytes(b"")
    outcome = extracted.verify()
    assert outcome.status == 0
    for entry in compared(outcome).values():
        assert (entry["rows"], entry["pictures_changed"]) == (ROWS, 3 * VIEWS)
        assert (entry["pixels_different"], entry["faults"]) == (0, [])
        assert entry["cosine_min"] == pytest.approx(1, abs=1e-5)
    for words in ("0003.jpg has changed", "0004.jpg is no longer in", "0005.jpg", "extract again"):
        assert sum(words in line for line in extracted.said.lines) >= 1, words


def test_verify__a_data_set_that_is_gone_is_said_at_once(extracted: Extracted) -> None:
    shutil.rmtree(extracted.source)
    with pytest.raises(ConfigError, match=r"needs the pictures.*without --against-teacher"):
        extracted.verify()


def test_verify__only_rows_that_count_are_compared(tmp_path: Path) -> None:
    """A changed picture and one that could be read the second time have new rows; a picture that
    stays bad has none to compare."""
    source = pictures(tmp_path / "pictures", 36)
    (source / "0001.jpg").write_bytes(b"")
    (source / "0002.jpg").write_bytes(b"no picture")
    extracted = Extracted(tmp_path, teachers={"vit": VIT}, grids=[1])
    extracted.extract()
    (source / "0001.jpg").write_bytes(photograph_bytes(1))
    (source / "0003.jpg").write_bytes(photograph_bytes(103))
    extracted.extract(retry_bad=True)
    outcome = extracted.verify()
    (entry,) = compared(outcome).values()
    assert outcome.status == 0
    assert (entry["rows"], entry["pictures_changed"]) == (35 * VIEWS, 0)


def test_verify__sets_of_an_earlier_teacher_are_left_alone(extracted: Extracted) -> None:
    before = extracted.sets
    cnn = {path for path in before if extracted.teacher_of(path).model == "test_resnet"}
    extracted.extract(teachers={"vit": {**VIT, "weights": "random:7"}, "cnn": CNN})
    found = compared(extracted.verify(5))
    assert found.keys() & before == cnn
    assert len(found) == 4


def test_verify__a_program_named_by_a_cache_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache may come from anywhere; what it names as a function is not called for that."""
    module = """
from infra.models.timm_encoder import build_timm

def build():
    return build_timm("test_vit", {}, "random:1")
"""
    (tmp_path / "their_encoders.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    theirs = {"library": "python", "model": "their_encoders:build"}
    source = pictures(tmp_path / "pictures", 5)
    extract_here(config_of(tmp_path / "cache", source, teachers={"theirs": theirs}))
    terminal = Quiet()
    outcome = verify.run(VerifyOptions(cache=str(tmp_path / "cache"), against_teacher=5), terminal)
    assert list(compared(outcome).values()) == [None]
    assert any("their_encoders:build" in line and "never run" in line for line in terminal.lines)


def test_verify__damaged_rows_are_named_and_the_others_compared(extracted: Extracted) -> None:
    path = extracted.set_of("test_vit", 2)
    tokens = extracted.cache / SetPath.parse(path).tokens(0, 0)
    data = bytearray(tokens.read_bytes())
    data[-1] ^= 1
    tokens.write_bytes(data)
    outcome = extracted.verify()
    assert (outcome.status, outcome.result["corrupt"]) == (1, 1)
    entry = compared(outcome)[path]
    assert entry["rows_damaged"] > 0
    assert entry["faults"] == []


def test_verify__sound_rows_in_another_order_are_damage(extracted: Extracted) -> None:
    """Each has its checksum, and none is the one that the CLS table names."""
    path = extracted.set_of("test_vit", 1)
    tokens = extracted.cache / SetPath.parse(path).tokens(0, 0)
    rows = shard.decode(tokens.read_bytes(), "", shard.RowForm("float16", 1, 64), 32)
    tokens.write_bytes(shard.encode(rows[::-1], [True] * 32, 32))
    entry = compared(extracted.verify())[path]
    assert (entry["rows_damaged"], entry["faults"]) == (32, [])


def test_verify__runs_no_teacher_whose_records_are_damaged(extracted: Extracted) -> None:
    path = extracted.set_of("test_vit", 2)
    codec = extracted.cache / SetPath.parse(path).codec_json
    codec.write_bytes(codec.read_bytes()[:-5])
    outcome = extracted.verify()
    assert (outcome.status, outcome.result["against_teacher"]) == (1, None)
    assert any("teachers are not run" in line for line in extracted.said.lines)
