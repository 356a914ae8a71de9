"""What the codec benchmark measures with and writes down; speeds are no test's business."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import bench_codec, bench_features
from pipeline.bench_codec import measure
from pipeline.bench_features import Bound, features
from pipeline.sample import StoredRow
from schemas.errors import ConfigError
from schemas.extract_config import CodecChoice
from schemas.measured import Affine
from schemas.options import BenchOptions
from tests.caches import CNN, VIT, Quiet, config_of, extract_here, pictures

KEYS = {
    "case",
    "codec",
    "bytes_per_token",
    "share_of_fp16",
    "bits_per_value",
    "cosine_mean",
    "cosine_p1",
    "relative_rms",
    "saturated",
    "gap_db",
    "encode_rows_per_s",
    "decode_rows_per_s",
    "encode_cpu_us_per_row",
    "decode_cpu_us_per_row",
    "device",
    "rows_a_call",
}
CLEAN, WITH_OUTLIERS = "1/f", "1/f with outliers"
Row = dict[str, Any]


def _measured(**options: object) -> dict[tuple[str, str], Row]:
    """By name of the features and of the method."""
    asked = BenchOptions.model_validate({"what": "codec", "repeats": 1, **options})
    rows = measure(asked, Quiet())
    return {(str(row["case"]).partition(":")[0], str(row["codec"])): row for row in rows}


@pytest.fixture(scope="module")
def spectra() -> dict[tuple[str, str], Row]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"CHANNELS": 64, "TOKENS": 64, "EXPONENTS": {CLEAN: 1}}.items():
            patch.setattr(bench_features, name, value)
        patch.setattr(bench_codec, "BITS", (4.0,))
        return _measured(sample=32)


def test_measure__every_method_on_every_spectrum(spectra: dict[tuple[str, str], Row]) -> None:
    turns = ("", ".hadamard", ".pca")
    rotated = [codec + turn for codec in ("int8", "int4", "variable4") for turn in turns]
    lossless = [f"{codec} + {name}" for codec in ("fp16", "int8") for name in ("zstd", "blosc")]
    methods = {"fp16", *rotated, *lossless}
    assert spectra.keys() == {
        (name, method) for name in (CLEAN, WITH_OUTLIERS) for method in methods
    }
    for (name, _), row in spectra.items():
        assert row.keys() == (KEYS if name == CLEAN else KEYS | {"db_to_clean"})
        assert row["rows_a_call"] == 16
        assert min(row["encode_rows_per_s"], row["decode_rows_per_s"]) > 0


def test_measure__bytes_are_those_of_the_format(spectra: dict[tuple[str, str], Row]) -> None:
    of = {method: row for (name, method), row in spectra.items() if name == CLEAN}
    stored = {"fp16": 128, "int8": 66, "int4": 34, "variable4": 32}
    assert {method: of[method]["bytes_per_token"] for method in stored} == stored
    assert of["variable4"]["share_of_fp16"] == 0.25
    assert of["variable4"]["bits_per_value"] == 4


def test_measure__figures_agree_with_one_another(spectra: dict[tuple[str, str], Row]) -> None:
    for (_, method), row in spectra.items():
        assert row["cosine_p1"] <= row["cosine_mean"] <= 1
        # What is lost lies at right angles to the token or along it: never further from this.
        assert 1 - row["cosine_mean"] == pytest.approx(
            row["relative_rms"] ** 2 / 2, rel=0.7, abs=2e-6
        )
        if method.startswith("fp16"):
            assert row["cosine_mean"] > 0.999999
    for name in (CLEAN, WITH_OUTLIERS):
        for codec in ("fp16", "int8"):
            for squeezed in ("zstd", "blosc"):
                plain, same = spectra[name, codec], spectra[name, f"{codec} + {squeezed}"]
                assert same["cosine_mean"] == plain["cosine_mean"]
                assert same["bytes_per_token"] < plain["bytes_per_token"] + 2


def test_measure__no_codec_beats_the_bound_and_rotations_earn_what_they_should(
    spectra: dict[tuple[str, str], Row],
) -> None:
    for (name, method), row in spectra.items():
        assert row["gap_db"] > 0.5, (name, method)
    for name in (CLEAN, WITH_OUTLIERS):
        best = spectra[name, "variable4.pca"]
        for method in ("int4", "int4.hadamard", "int4.pca", "variable4", "variable4.hadamard"):
            assert best["cosine_mean"] > spectra[name, method]["cosine_mean"]
            assert best["gap_db"] < spectra[name, method]["gap_db"]
        assert best["gap_db"] < 5
    assert abs(spectra[WITH_OUTLIERS, "variable4.pca"]["db_to_clean"]) < 1


def test_bound__is_the_one_of_the_books() -> None:
    white = Bound(2, np.array([1.0, 1.0]))
    assert white.distortion(8) == pytest.approx(2**-8)
    uneven = Bound(2, np.array([1.6, 0.4]))
    # The narrow one gets bits only once the wide one is as narrow: from 1 bit on.
    assert uneven.distortion(0.5) == pytest.approx((0.8 + 0.4) / 2)
    assert uneven.distortion(1) == pytest.approx(0.4)
    assert uneven.distortion(3) == pytest.approx(0.1)


def test_bound__of_tokens_does_not_depend_on_their_lengths() -> None:
    tokens = torch.randn(2, 512, 8, generator=torch.Generator().manual_seed(0))
    lengths = torch.linspace(0.1, 10, 512)[:, None]
    tokens[0, 0] = 0
    same = Bound.of(tokens).distortion(16)
    assert Bound.of(tokens * lengths).distortion(16) == pytest.approx(same)
    assert same == pytest.approx(2**-4, rel=0.05)
    silent = torch.cat([tokens, torch.zeros(2, 512, 8)], dim=2)
    assert Bound.of(silent).distortion(16) == pytest.approx(same)


def test_spectrum__outliers_are_all_that_is_added() -> None:
    clean = bench_features.spectrum(CLEAN, 1, 4)
    wild = bench_features.spectrum(WITH_OUTLIERS, 1, 4, has_outliers=True)
    assert (clean.clean, wild.clean) == (None, CLEAN)
    assert clean.measured.shape == clean.held_out.shape == (2, 256, 384)
    ratio = (wild.measured / clean.measured).round().flatten(0, 1)
    assert ratio[1, :12].tolist() == [1, 1, 1, 100, 1, 1, 1, 1, 1, 100, 1, 1]
    assert ratio[97, 0] == ratio[0, 0] == 20


def test_halves__no_picture_is_in_both() -> None:
    keys = ["a", "b", "a", "c", "d", "b"]
    rows = [
        StoredRow(n, 0, key, 0, None, b"", b"", np.full((1, 1), n, np.float16), None)
        for n, key in enumerate(keys)
    ]
    measured, held_out = bench_features._halves("url", rows, Affine(mean=(5.0,), std=(2.0,)))
    assert measured.flatten().tolist() == [5, 9, 11]
    assert held_out.flatten().tolist() == [7, 13, 15]
    with pytest.raises(ConfigError, match="url: 1 pictures"):
        bench_features._halves("url", rows[:1], Affine(mean=(5.0,), std=(2.0,)))


@pytest.fixture
def cache(tmp_path: Path) -> str:
    config = config_of(
        tmp_path / "cache",
        pictures(tmp_path / "pictures", 6),
        grids=[2, 3],
        views={"per_image": 2},
        teachers={"vit": VIT, "cnn": {**CNN, "codec": {"tokens": "int8"}}},
    )
    extract_here(config)
    return str(tmp_path / "cache")


def test_measure__the_fp16_sets_of_a_cache(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [CodecChoice(tokens="fp16"), CodecChoice(tokens="int8", rotation="pca")]
    monkeypatch.setattr(bench_codec, "choices", lambda: iter(few))
    monkeypatch.setattr(bench_features, "EXPONENTS", {CLEAN: 1})
    found = _measured(caches=[cache], sample=8)
    assert {name for name, _ in found} == {"cache vit g2", "cache vit g3", CLEAN, WITH_OUTLIERS}
    assert found["cache vit g2", "fp16"]["cosine_mean"] > 0.999999
    assert found["cache vit g3", "int8.pca"]["cosine_mean"] > 0.99


def test_features__those_that_are_asked_for(cache: str) -> None:
    def names(**options: object) -> list[str]:
        asked = BenchOptions.model_validate({"what": "codec", "cache": cache, **options})
        return [next(features(asked)).name]

    assert names(grid=3) == ["cache vit g3"]
    assert names(teacher="vit", grid=2) == ["cache vit g2"]
    first = next(features(BenchOptions(what="codec", cache=cache)))
    assert first.measured.shape == first.held_out.shape == (6, 4, 64)
    with pytest.raises(ConfigError, match=r"no set to measure with.* cnn grid 2 as int8"):
        names(teacher="cnn")
