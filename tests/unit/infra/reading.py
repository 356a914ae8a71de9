"""What tests of sources ask of them."""

import pytest

from infra.sources import Source
from schemas.errors import ImageError
from schemas.extract_config import Columns

COLUMNS = Columns()


def keys(source: Source) -> list[str]:
    return [entry.key for entry in source.entries()]


def refusal(source: Source, key: str) -> str:
    with pytest.raises(ImageError) as caught:
        source.read(key)
    return str(caught.value)
