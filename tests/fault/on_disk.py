"""A cache on a disk, of two teachers, of which one gets other weights; and the commands on it."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from infra.models.timm_encoder import build_timm
from infra.store import LocalStore
from pipeline import gc, snapshots
from schemas.options import GcOptions, SnapshotsOptions
from tests.caches import CNN, VIT, Quiet, config_of, extract_here, pictures
from trainer import CacheStream

PICTURES = 40


class Cache:
    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder / "cache", pictures(folder / "pictures", PICTURES)
        self.weights = folder / "vit.safetensors"
        self.store = LocalStore(self.folder)

    def extract(self, seed: int, **changes: Any) -> dict[str, Any]:
        """With the first teacher's weights of a seed."""
        save_file(build_timm("test_vit", {}, f"random:{seed}").model.state_dict(), self.weights)
        teachers = {"vit": {**VIT, "weights": str(self.weights)}, "cnn": CNN}
        asked = {"teachers": teachers, **changes}
        return extract_here(config_of(self.folder, self.source, **asked)).result

    def gc(self, **options: Any) -> dict[str, Any]:
        return gc.run(GcOptions(cache=str(self.folder), **options), Quiet()).result

    def snapshots(self, **options: Any) -> list[dict[str, Any]]:
        options = {"cache": str(self.folder), **options}
        told = snapshots.run(SnapshotsOptions(**options), Quiet()).result["snapshots"]
        assert isinstance(told, list)
        return told

    def objects(self) -> set[str]:
        return set(self.store.keys(""))

    def served(self, **options: Any) -> int:
        stream = CacheStream(str(self.folder), pixels=None, batch_size=PICTURES, **options)
        return int(next(iter(stream)).weight.sum())
