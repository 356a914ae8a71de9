"""What a second extraction does: all that has changed, and nothing else."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from infra.models.timm_encoder import build_timm
from infra.store import open_store
from schemas.errors import TeacherError
from tests.builders import photograph_bytes
from tests.caches import CNN, VIT, config_of, extract_here, pictures, verify_here
from trainer import CacheStream

PICTURES, VIEWS = 40, 2
SERVE: dict[str, Any] = {"pixels": None, "batch_size": 16}
NEW = {**VIT, "weights": "random:9", "grids": [1]}


class Cache:
    """A data set of 40 pictures, two teachers, two grids; rebuilt with whatever changes."""

    def __init__(self, folder: Path) -> None:
        self.source = pictures(folder / "pictures", PICTURES)
        self.weights = folder / "vit.safetensors"
        self.new_weights(1)
        self.folder = folder / "cache"
        self.asked: dict[str, Any] = {
            "views": {"per_image": VIEWS},
            "grids": [1, 2],
            "teachers": {"vit": {**VIT, "weights": str(self.weights)}, "cnn": CNN},
        }

    def new_weights(self, seed: int) -> None:
        save_file(build_timm("test_vit", {}, f"random:{seed}").model.state_dict(), self.weights)

    def extract(self, **changes: Any) -> dict[str, Any]:
        self.asked |= changes
        outcome = extract_here(config_of(self.folder, self.source, **self.asked))
        assert outcome.status == 0
        return outcome.result

    def objects(self) -> dict[str, int]:
        """Every object's time of change."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path): path.stat().st_mtime_ns for path in files}

    def verified(self) -> dict[str, Any]:
        outcome = verify_here(self.folder)
        assert outcome.status == 0, outcome.result["damage"]
        return outcome.result

    def epoch(self, **options: Any) -> dict[int, str]:
        """Plan rows that one epoch serves with weight 1, pictures replayed."""
        stream = CacheStream(
            str(self.folder), teachers={"vit": 2, "cnn": 1}, pixels=32, batch_size=16, **options
        )
        rows: list[int] = []
        for batch in stream:
            rows += batch.rows[batch.weight > 0].tolist()
            if batch.state["epoch"] == 1:
                break
        assert len(set(rows)) == len(rows)
        return dict.fromkeys(rows, "")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache(tmp_path)
    first = made.extract()
    assert first["teacher_forwards"] == PICTURES * VIEWS * 4
    assert first["decodes"] == PICTURES  # once, for two teachers, two views and two grids
    before = made.objects()
    yield made
    after = made.objects()
    assert {path: after.get(path) for path in before} == before  # nothing is ever overwritten


def test_rebuild__changed_weights_run_that_teacher_alone(cache: Cache) -> None:
    old = cache.epoch()
    cache.new_weights(5)
    again = cache.extract()
    assert again["teacher_forwards"] == PICTURES * VIEWS * 2
    assert again["snapshot"] == 2
    told = cache.verified()
    names = sorted(str(entry["teacher"]) for entry in told["coverage"].values())
    assert names == ["None", "None", "cnn", "cnn", "vit", "vit"]
    assert cache.epoch() == cache.epoch(snapshot=1) == old
    one, other = (
        next(iter(CacheStream(str(cache.folder), snapshot=n, teachers={"vit": 2}, **SERVE)))
        for n in (1, 2)
    )
    assert one.rows.tolist() == other.rows.tolist()
    assert not np.allclose(one.targets["vit"].tokens, other.targets["vit"].tokens, atol=0.1)


def test_rebuild__new_images_are_computed_alone(cache: Cache) -> None:
    pictures(cache.source, 10, first=PICTURES)
    again = cache.extract()
    assert (again["rows"], again["teacher_forwards"]) == (50 * VIEWS, 10 * VIEWS * 4)
    assert again["decodes"] == 10
    assert cache.verified()["rows"] == 50 * VIEWS
    assert len(cache.epoch()) == 50 * VIEWS
    assert len(cache.epoch(snapshot=1)) == PICTURES * VIEWS


def test_rebuild__more_views_are_computed_alone(cache: Cache) -> None:
    again = cache.extract(views={"per_image": 5})
    assert (again["rows"], again["teacher_forwards"]) == (PICTURES * 5, PICTURES * 3 * 4)
    assert cache.verified()["ok"] == PICTURES * 5
    assert len(cache.epoch()) == PICTURES * 5
    assert len(cache.epoch(views=[4])) == PICTURES
    fewer = cache.extract(views={"per_image": 1}, grids=[1, 2, 3])
    assert fewer["rows"] == PICTURES
    # A short last span's shards may hold two views.
    assert PICTURES * 2 <= fewer["teacher_forwards"] < PICTURES * 2 * 2


def test_rebuild__a_dropped_grid_or_teacher_deletes_nothing(cache: Cache) -> None:
    again = cache.extract(grids=[2])
    assert (again["teacher_forwards"], again["snapshot"]) == (0, 1)
    again = cache.extract(teachers={"cnn": CNN})
    assert (again["teacher_forwards"], again["snapshot"]) == (0, 1)
    assert len(cache.epoch()) == PICTURES * VIEWS


def test_rebuild__only_runs_one_and_keeps_the_others(cache: Cache) -> None:
    pictures(cache.source, 10, first=PICTURES)
    cache.new_weights(7)
    again = cache.extract(only="vit")
    assert again["teacher_forwards"] == 50 * VIEWS * 2
    assert len(cache.epoch()) == PICTURES * VIEWS  # the CNN has not seen the new ones
    rest = cache.extract(only=["cnn"])
    assert rest["teacher_forwards"] == 10 * VIEWS * 2
    assert len(cache.epoch()) == 50 * VIEWS


def test_rebuild__a_raised_limit_and_a_lowered_one(tmp_path: Path) -> None:
    made = Cache(tmp_path)
    limited = {"source": str(made.source), "limit": 33}
    assert made.extract(images=limited)["rows"] == 33 * VIEWS
    again = made.extract(images={**limited, "limit": 40})
    assert (again["rows"], again["teacher_forwards"]) == (40 * VIEWS, 7 * VIEWS * 4)
    # A new grid of fewer images: whole shards of 32, and no more.
    fewer = made.extract(images={**limited, "limit": 20}, grids=[1, 2, 3])
    assert (fewer["rows"], fewer["teacher_forwards"]) == (20 * VIEWS, 32 * VIEWS * 2)
    made.verified()


def test_rebuild__a_changed_picture_gets_new_rows(cache: Cache) -> None:
    name = cache.source / "0007.jpg"
    size = name.stat().st_size
    data = photograph_bytes(1234, 60, 50)[:size]
    name.write_bytes(data + b"\0" * (size - len(data)))  # as long as before
    stat = name.stat()
    os.utime(name, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    again = cache.extract()
    assert (again["rows"], again["teacher_forwards"]) == (PICTURES * VIEWS, VIEWS * 4)
    told = cache.verified()
    assert (told["rows"], told["ok"], told["bad"]) == (PICTURES * VIEWS, PICTURES * VIEWS, 0)
    served = cache.epoch()
    assert len(served) == PICTURES * VIEWS
    assert max(served) >= PICTURES * VIEWS  # its rows stand at the plan's end
    assert cache.extract()["teacher_forwards"] == 0
    # A new teacher does not compute the rows that were replaced.
    fresh = cache.extract(teachers={**cache.asked["teachers"], "new": NEW})
    assert fresh["teacher_forwards"] == PICTURES * VIEWS
    told = cache.verified()
    assert (told["rows"], told["ok"], told["bad"]) == (PICTURES * VIEWS, PICTURES * VIEWS, 0)


def test_rebuild__a_touched_picture_is_not_computed(cache: Cache) -> None:
    for name in cache.source.iterdir():
        os.utime(name, (1, 1))
    again = cache.extract()
    assert (again["teacher_forwards"], again["snapshot"]) == (0, 1)


def test_rebuild__bad_rows_are_tried_again_when_asked(tmp_path: Path) -> None:
    made = Cache(tmp_path)
    made.asked["tolerate_bad_images"] = 1
    broken = made.source / "0003.jpg"
    sound = broken.read_bytes()
    broken.write_bytes(sound[:100])
    stat = broken.stat()
    first = made.extract()
    assert (first["ok"], first["bad"]) == ((PICTURES - 1) * VIEWS, VIEWS)
    assert made.extract()["snapshot"] == 1
    still = made.extract(retry_bad=True)
    assert (still["bad"], still["teacher_forwards"], still["snapshot"]) == (VIEWS, 0, 2)
    broken.write_bytes(sound)
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = made.extract(retry_bad=True)
    assert (again["rows"], again["ok"], again["bad"]) == (PICTURES * VIEWS, PICTURES * VIEWS, 0)
    assert again["teacher_forwards"] == VIEWS * 4
    told = made.verified()
    assert (told["rows"], told["ok"], told["bad"]) == (PICTURES * VIEWS, PICTURES * VIEWS, 0)
    assert len(made.epoch()) == PICTURES * VIEWS
    assert made.extract(retry_bad=True)["snapshot"] == again["snapshot"]


def test_rebuild__a_repaired_picture_is_noticed_without_asking(tmp_path: Path) -> None:
    made = Cache(tmp_path)
    made.asked["tolerate_bad_images"] = 1
    broken = made.source / "0003.jpg"
    sound = broken.read_bytes()
    broken.write_bytes(sound[:100])
    made.extract()
    broken.write_bytes(sound)
    again = made.extract()
    assert (again["bad"], again["teacher_forwards"]) == (0, VIEWS * 4)


def test_rebuild__a_removed_picture_keeps_its_rows(cache: Cache) -> None:
    (cache.source / "0007.jpg").unlink()
    again = cache.extract(tolerate_bad_images=0.1)
    assert (again["rows"], again["teacher_forwards"]) == ((PICTURES - 1) * VIEWS, 0)
    fresh = cache.extract(teachers={**cache.asked["teachers"], "new": NEW})
    assert (fresh["bad"], fresh["teacher_forwards"]) == (0, (PICTURES - 1) * VIEWS)
    told = cache.verified()
    assert (told["rows"], told["bad"]) == (PICTURES * VIEWS, VIEWS)


def test_rebuild__a_changed_library_is_refused(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tensors, and other features: what a probe is for."""
    pictures(cache.source, 3, first=PICTURES)
    store = open_store(str(cache.folder))
    snapshots = store.keys("snapshots/")
    monkeypatch.setattr("torch.nn.functional.layer_norm", _other_layer_norm)
    with pytest.raises(TeacherError, match=r"says something else here .* cosine"):
        cache.extract(only="vit")
    assert list(store.keys("snapshots/")) == list(snapshots)


def _other_layer_norm(values: Any, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    centred = values - values.mean(-1, keepdim=True)
    return centred / (centred.abs().mean(-1, keepdim=True) + eps) * weight + bias
