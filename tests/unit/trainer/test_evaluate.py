"""`evaluate` as a whole, on pictures whose class is their colour."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.command import Outcome
from infra.terminal import Terminal
from schemas.errors import ConfigError
from schemas.options import EvaluateOptions
from schemas.strict import parse
from trainer.evaluate import run
from trainer.students import build_student, describe, save_model

pytestmark = pytest.mark.unit

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230)}


def png(colour: tuple[int, int, int], seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(-20, 20, (24, 36, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, each: int, first: int = 0) -> Path:
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(first, first + each):
            (root / name / f"{number}.png").write_bytes(png(colour, number))
    return root


def write_parquet(path: Path, each: int, labels: bool = True) -> Path:
    rows = [(name, number) for number in range(each) for name in COLOURS]
    columns: dict[str, list[Any]] = {
        "image": [png(COLOURS[name], number) for name, number in rows],
        "path": [f"{name}-{number}" for name, number in rows],
    }
    if labels:
        columns["label"] = [list(COLOURS).index(name) for name, _ in rows]
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def evaluate(data: Path, **options: Any) -> Outcome:
    words = {"student": "timm:test_resnet", "weights": "random:0", "grid": 4, "data": str(data)}
    return run(parse(EvaluateOptions, words | options, "test"), Terminal(to_stderr=True))


def test_folder__is_divided_80_20(tmp_path: Path) -> None:
    result = evaluate(write_folder(tmp_path / "data", 10)).result
    assert (result["train_images"], result["test_images"], result["bad_images"]) == (24, 6, 0)
    assert result["knn_top1"] == 1.0
    assert result["knn"] == {"10": 1.0, "20": 1.0}
    assert set(result["knn_majority"]) == {"10", "20"}  # type: ignore[call-overload]
    assert result["linear_top1"] == 1.0
    for name in ("segmentation_miou", "depth_rmse", "correspondence_pck", "zeroshot_top1"):
        assert result[name] is None
    assert result["parameters"] == sum(
        parameter.numel() for parameter in build_student("timm:test_resnet", 0).model.parameters()
    )
    assert result["cpu_ms"] > 0  # type: ignore[operator]


def test_folder__its_own_split_is_used(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 4)
    write_folder(tmp_path / "val", 2, first=4)
    result = evaluate(tmp_path).result
    assert (result["train_images"], result["test_images"]) == (12, 6)
    assert result["knn_top1"] == 1.0


@pytest.mark.parametrize("name", ["val", "test"])
def test_parquet__its_own_split_is_used(tmp_path: Path, name: str) -> None:
    write_parquet(tmp_path / "train.parquet", 5)
    write_parquet(tmp_path / f"{name}.parquet", 3)
    result = evaluate(tmp_path).result
    assert (result["train_images"], result["test_images"]) == (15, 9)
    assert result["knn_top1"] == 1.0


def test_parquet__file_is_divided_and_limited(tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "data.parquet", 10)
    small, large = evaluate(data, batch_size=5).result, evaluate(data, batch_size=64).result
    assert small["knn"] == large["knn"]
    assert small["linear_top1"] == large["linear_top1"]
    limited = evaluate(data, limit=4).result
    assert (limited["train_images"], limited["test_images"]) == (4, 4)
    assert list(limited["knn"]) == ["4"]  # type: ignore[call-overload]


def test_bad_pictures__are_counted_and_left_out(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", 10)
    for name in COLOURS:
        (data / name / "0.png").write_bytes(b"not a picture")
    result = evaluate(data, batch_size=3).result
    assert result["bad_images"] == 3
    assert result["train_images"] + result["test_images"] == 27  # type: ignore[operator]
    assert result["knn_top1"] == 1.0


def test_pictures__all_bad_is_said(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", 3)
    for path in data.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="0 pictures to compare with and 0 to test could be read"):
        evaluate(data)


def test_data__without_labels_or_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without a label; name the column with"):
        evaluate(write_parquet(tmp_path / "data.parquet", 3, labels=False))
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(5):
        (flat / f"{number}.png").write_bytes(png(COLOURS["red"], number))
    with pytest.raises(ConfigError, match="of the class 'flat', so there is nothing to tell apart"):
        evaluate(flat)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="at least one of each"):
        evaluate(empty)


def test_student__of_a_run_is_shown_what_it_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = build_student("timm:test_resnet", 0)
    record = describe(
        encoder, "timm:test_resnet", grid=6, stage="fixed", step=1, snapshot=1, teachers={}
    )
    save_model(tmp_path / "run", encoder, record)
    data = write_folder(tmp_path / "data", 5)
    from_run = evaluate(data, student=str(tmp_path / "run"), grid=None).result
    assert "6 (96 px)  (as it was trained)" in capsys.readouterr().err
    from_timm = evaluate(data, grid=6).result
    assert "means nothing" in capsys.readouterr().err
    assert from_run["knn"] == from_timm["knn"]
    assert from_run["gflops"] == from_timm["gflops"]


def test_arguments__are_of_timm_models_alone(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", 4)
    wide = {"student": "timm:resnet18", "arguments": {"channels": [8, 8, 8, 16]}, "limit": 3}
    thin = wide | {"arguments": {"channels": [8, 8, 8, 8]}}
    wider, thinner = (evaluate(data, **words).result["parameters"] for words in (wide, thin))
    assert wider > thinner  # type: ignore[operator]
    with pytest.raises(ConfigError, match="says by itself what it is"):
        evaluate(data, student=str(tmp_path), arguments={"depth": 1})


def test_gflops__count_two_for_each_multiply_add(tmp_path: Path) -> None:
    """ViT-T/16 at 256 px, by hand: 256 + 5 tokens of width 192, 12 blocks, and the patches."""
    tokens, width = 261, 192
    linear, attention = 12 * tokens * width**2, 2 * tokens**2 * width
    expected = 2 * (12 * (linear + attention) + 256 * 3 * 16**2 * width)
    data = write_folder(tmp_path / "data", 4)
    result = evaluate(data, student="timm:vit_tiny_patch16_dinov3_qkvb", grid=16, limit=3).result
    assert result["gflops"] == pytest.approx(expected / 1e9, rel=1e-3)
