"""An extraction that takes long enough to be killed half way."""

from typing import Any

PICTURES, WORKERS = 320, 2
SETTINGS: dict[str, Any] = {
    "views": {"per_image": 2},
    "grids": [8],
    "workers": {"batch_size": 32, "gpus": 0, "count": WORKERS, "decode_threads": 1},
}
