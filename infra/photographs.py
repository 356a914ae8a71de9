"""Real photographs that come inside an installed package, for the quickstart and benchmarks.

`python -m infra.photographs FOLDER` copies them; nothing is downloaded.
"""

import importlib.util
import sys
from pathlib import Path

from infra.durable import replace_file
from schemas.errors import ConfigError

NAMES = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
)


def photographs(folder: Path) -> Path:
    """Copy scikit-image's photographs into `folder`, unless they are there.

    Raises:
        ConfigError: scikit-image is not installed.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ConfigError("no photographs: install scikit-image, or name a folder of your own")
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        if not (folder / name).exists():
            replace_file(folder / name, (Path(spec.origin).parent / "data" / name).read_bytes())
    return folder


if __name__ == "__main__":
    photographs(Path(sys.argv[1]))
