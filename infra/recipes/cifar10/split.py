"""Divide labelled Parquet into OUT/train.parquet and OUT/val.parquet by a keyed hash of the key.

python -m infra.recipes.cifar10.split TRAIN.parquet OUT [--limit N]
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from schemas.keyed_hash import hash_texts

SPLIT_KEY = b"teachonce recipes cifar10"
"""Never changed: figures of one split compare with one another only."""
VAL_SHARE = 10
"""One picture in this many is for validation."""
ROWS_PER_GROUP = 5000
"""Parquet is read by row group; a group is far below what a source keeps in memory."""


def split(source: Path, out: Path, limit: int | None = None) -> dict[str, int]:
    """Write both parts, all columns kept, in the order of the source.

    Args:
        limit: of so many pictures in all, the first in hash order.

    Returns:
        How many pictures each part has.
    """
    table = pq.read_table(source)
    order = np.argsort(hash_texts(map(str, table["path"].to_pylist()), SPLIT_KEY), kind="stable")
    order = order[:limit]
    val_rows = len(order) // VAL_SHARE
    out.mkdir(parents=True, exist_ok=True)
    # Validation last, and each by a rename: whoever finds it finds both parts whole.
    parts = {"train": order[val_rows:], "val": order[:val_rows]}
    for name, places in parts.items():
        half = out / f"{name}.part"
        pq.write_table(table.take(np.sort(places)), half, row_group_size=ROWS_PER_GROUP)
        half.rename(out / f"{name}.parquet")
    return {name: len(places) for name, places in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="Parquet with the columns path, image, label")
    parser.add_argument("out", type=Path, help="folder for train.parquet and val.parquet")
    parser.add_argument("--limit", type=int, help="only so many pictures, for a try")
    arguments = parser.parse_args()
    for name, rows in split(arguments.source, arguments.out, arguments.limit).items():
        print(f"{name:<12} {rows:,} pictures in {arguments.out / name}.parquet")


if __name__ == "__main__":
    main()
