"""What plan says of each codec comes true."""

from pathlib import Path

import numpy as np
import pytest

from infra.store import LocalStore
from pipeline import estimate, pace
from pipeline.predict import CHOICES
from schemas.codec import codec_label
from tests.caches import Quiet, commits, config_of, extract_here, pictures


@pytest.mark.parametrize("calibrated", [False, True])
def test_plan__predicts_bytes_and_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibrated: bool
) -> None:
    monkeypatch.setattr(pace, "TIMED_BATCHES", 1)
    source = pictures(tmp_path / "pictures", 64)
    told = {"views": {"per_image": 2}, "codec": {"tokens": "variable", "bits": 2.5}}
    config = config_of(tmp_path / "cache", source, **told)
    if calibrated:
        extract_here(config_of(tmp_path / "cache", source, views={"per_image": 2}))
    said = estimate.run(config, Quiet()).result["codecs"]["vit"]["2"]  # type: ignore[index]
    by_label = {each["codec"]: each for each in said}
    assert set(by_label) == {*map(codec_label, CHOICES), "variable2.5.pca"}
    sizes = [by_label[label]["bytes"] for label in ("fp16", "int8", "int4.hadamard")]
    assert sizes == [4 * 64 * 2, 4 * (64 + 2), 4 * (32 + 2)]
    extract_here(config)
    found = [
        commit
        for commit in commits(LocalStore(tmp_path / "cache")).values()
        if "variable2.5.pca" in commit.set
    ]
    lost = np.mean([1 - (commit.error.cosine_mean or 0.0) for commit in found])
    predicted = 1 - by_label["variable2.5.pca"]["cosine"]
    if calibrated:
        assert predicted == pytest.approx(lost, rel=0.5)
    else:
        # 32 tokens of 64 channels stand for a calibration: too few axes, and so too much loss.
        assert lost / 2 < predicted < lost * 10
