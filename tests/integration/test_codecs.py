"""Teachers in several codecs, from extraction to training, as users run it."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.catalog import Catalog
from infra.store import LocalStore
from schemas.layout import SetPath
from tests.caches import CNN, VIT, commits, pictures, settings
from tests.processes import EXTRACT_BY_PATH, TRAIN_BY_PATH, Ended, by_module, config_file, run
from tests.trainings import metrics
from tests.trainings import settings as train_settings
from trainer.cache import CacheReader

PICTURES, VIEWS, STEPS = 36, 2, 8
ROWS = PICTURES * VIEWS
CODECS: dict[str, dict[str, Any]] = {
    "eight": {"tokens": "int8"},
    "four": {"tokens": "int4"},
    "varying": {"tokens": "variable", "bits": 3},
}
LABELS = {"eight": "int8", "four": "int4.hadamard", "varying": "variable3.pca"}
MODELS = {"eight": VIT, "four": VIT | {"weights": "random:3"}, "varying": CNN}
AFTERWARDS = "variable2.pca"
"""Of `eight`."""


class Place:
    """A cache, and runs that learn from it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.source = pictures(folder / "pictures", PICTURES)

    def extract(self, **codecs: dict[str, Any]) -> Ended:
        teachers = {
            name: MODELS[name] | {"codec": codec} for name, codec in (CODECS | codecs).items()
        }
        values = settings(
            self.cache, self.source, views={"per_image": VIEWS}, grids=[3], teachers=teachers
        )
        config = config_file(self.folder / "extract.yaml", values)
        done = run(EXTRACT_BY_PATH, "--config", config)
        assert done.status == 0, done.stderr
        return done

    def verify(self) -> dict[str, Any]:
        done = run(by_module("verify"), self.cache, "--against-teacher", 6)
        assert done.status == 0, done.stderr
        return done.result

    def train(self, name: str, *words: object, **teachers: dict[str, Any]) -> Ended:
        values = train_settings(
            self.cache,
            self.folder / name,
            teachers={teacher: {} for teacher in CODECS} | teachers,
            student_grids=[3],
            optim={"lr": 1e-3, "steps": STEPS, "batch_size": 16},
        )
        config = config_file(self.folder / f"{name}.yaml", values)
        done = run(TRAIN_BY_PATH, "--config", config, *words)
        assert done.status == 0, done.stderr
        return done

    def learnt(self, name: str) -> tuple[bytes, bytes, float]:
        """The student, its heads, and the last loss."""
        out = self.folder / name
        files = ("model.safetensors", "heads.safetensors")
        model, heads = ((out / file).read_bytes() for file in files)
        return model, heads, metrics(out)[-1]["loss"]

    def snapshot_labels(self, number: int) -> list[str]:
        sets = Catalog(LocalStore(self.cache)).snapshot(number).table["set"].to_pylist()
        return sorted({SetPath.parse(path).codec_label for path in sets})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("codecs"))


def test_codecs__from_extraction_to_training_and_one_more_afterwards(place: Place) -> None:
    # Three teachers in three codecs in one run.
    told = place.extract().result
    assert (told["ok"], told["bad"], told["snapshot"]) == (ROWS, 0, 1)
    assert told["teacher_forwards"] == ROWS * len(CODECS)
    assert place.snapshot_labels(1) == sorted(LABELS.values())
    for commit in commits(LocalStore(place.cache)).values():
        error = commit.error
        assert error.cosine_mean is not None
        assert error.cosine_p1 is not None
        assert 0.98 < error.cosine_p1 < error.cosine_mean < 1
        assert error.saturated == 0 or "int4" in commit.set

    # Their teachers say it again.
    told = place.verify()
    assert told["ok"] == ROWS
    compared = told["against_teacher"]
    assert {SetPath.parse(path).codec_label for path in compared} == set(LABELS.values())
    for path, found in compared.items():
        assert found["faults"] == [], path
        assert found["cosine_min"] == pytest.approx(1, abs=1e-5)

    # One training learns from all three; stopped and resumed it is the same to the bit.
    assert place.train("undisturbed").result["step"] == STEPS
    place.train("resumed", "--max-steps", 3)
    resumed = place.train("resumed")
    assert (resumed.result["resumed_from"], resumed.result["step"]) == (3, STEPS)
    assert place.learnt("resumed") == place.learnt("undisturbed")

    # Another codec of one teacher: only that is computed, and what was there stays as it was.
    before = {path: path.stat().st_mtime_ns for path in place.cache.rglob("*") if path.is_file()}
    told = place.extract(eight={"tokens": "variable", "bits": 2}).result
    assert (told["teacher_forwards"], told["snapshot"]) == (ROWS, 2)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert place.snapshot_labels(2) == sorted([*LABELS.values(), AFTERWARDS])

    # By default the one written last; by its name the old one, from which the same is learnt.
    assert codec_read(place.cache) == AFTERWARDS
    assert codec_read(place.cache, AFTERWARDS) == AFTERWARDS
    assert codec_read(place.cache, "int8") == "int8"
    place.train("chosen", eight={"codec": "int8"})
    assert json.loads((place.folder / "chosen/model.json").read_text())["snapshot"] == 2
    assert place.learnt("chosen") == place.learnt("undisturbed")


def codec_read(cache: Path, asked: str | None = None) -> str:
    """Of `eight`; its rows are read, and every byte of them checked."""
    reader = CacheReader(str(cache), teachers={"eight": 3}, codecs={"eight": asked})
    assert reader.read_block(0, 0)[0].sets["eight"].ok.all()
    return reader.sets["eight"][3].codec_label
