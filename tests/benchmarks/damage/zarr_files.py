"""The files of a Zarr v3 folder with sharded `tokens`, the shard's index at its end."""

from pathlib import Path

from tests.benchmarks.damage.peer import ROWS_PER_SHARD, File

INDEX_BYTES = 16 * ROWS_PER_SHARD + 4


def files_of(folder: Path) -> list[File]:
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        if path.name == "zarr.json":
            files.append(File(name, "records"))
        elif name.startswith("tokens/"):
            start = size - INDEX_BYTES
            files.append(File(name, "rows", ((start, size),), start // 2))
        else:
            files.append(File(name, "rows", row_start=size // 2 // 8 * 8))
    return files
