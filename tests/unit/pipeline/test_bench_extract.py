"""What the extraction benchmark writes down; its figures themselves are no test's business."""

from pathlib import Path

import pytest

from pipeline import bench_extract
from pipeline.bench_extract import CPU_CASES, GPU_CASES, measure
from pipeline.teachers import load_teacher
from schemas.extract_config import ExtractConfig, Teacher
from schemas.options import BenchOptions
from tests.caches import Quiet, extract_here, pictures

SMALL = {
    "one": {"vit": {"model": "test_vit"}},
    "three": {
        "vit": {"model": "test_vit"},
        "wide": {"model": "test_vit", "arguments": {"class_token": False, "global_pool": "avg"}},
        "cnn": {"model": "test_resnet"},
    },
}


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_extract, "GRIDS", (1, 2))
    monkeypatch.setattr(bench_extract, "CPU_CASES", SMALL)
    monkeypatch.setattr(bench_extract, "GPU_CASES", SMALL)


@pytest.mark.usefixtures("_small")
def test_measure__shares_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_extract, "_best_bare_rate", lambda config: 1e4)
    monkeypatch.setattr(bench_extract, "extract", extract_here)
    source = pictures(tmp_path / "pictures", 5)
    options = BenchOptions(what="extract", images=str(source), limit=4, repeats=2)
    one, three = measure(options, Quiet())
    assert one["case"] == "one: vit float32, 4 views x grids 1, 2, 4 images"
    assert three["case"] == "three: vit, wide, cnn float32, 4 views x grids 1, 2, 4 images"
    for row, features in ((one, 32), (three, 96)):
        assert isinstance(row["shares"], list)
        assert len(row["shares"]) == 2
        assert row["bare_seconds"] == round(features / 1e4, 2)
        for key in ("forward_worker_s", "encode_worker_s", "wait_worker_s", "decode_thread_s"):
            assert isinstance(row[key], float)


@pytest.mark.usefixtures("_small")
def test_bare_rate__of_two_processes(tmp_path: Path) -> None:
    options = BenchOptions(what="extract", images=str(tmp_path))
    config = bench_extract._config(str(tmp_path / "cache"), str(tmp_path), options, SMALL["one"])
    assert bench_extract._bare_rate(config, 2) > 0
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("cases", [CPU_CASES, GPU_CASES], ids=["cpu", "gpu"])
def test_cases__differ_in_kind(cases: dict[str, dict[str, dict[str, object]]]) -> None:
    """Patch 16 with a class token, patch 14 without one, and a convolutional network."""
    told = []
    for model in cases["three"].values():
        teacher = Teacher.model_validate({"library": "timm", "weights": "random:0", **model})
        record = load_teacher(teacher, "float32", "cpu").record
        told.append((record.patch_pixels, record.cls_kind))
    assert told == [(16, "class_token"), (14, "mean"), (32, "mean")]


@pytest.mark.usefixtures("_small")
def test_config__is_a_sound_one(tmp_path: Path) -> None:
    options = BenchOptions(what="extract", images=str(tmp_path), case="three")
    config = bench_extract._config("cache", str(tmp_path), options, SMALL["three"])
    assert isinstance(config, ExtractConfig)
    assert config.grids == (1, 2)
