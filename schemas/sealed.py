"""JSON that ends in its own checksum.

A sealed object is one line of JSON whose last member is `"sha256"`. The digest covers the bytes of
the same line with that member taken out and the closing brace put back, so a reader in any
language can check it without agreeing on a canonical form of numbers.
"""

import hashlib
import json
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from schemas.errors import DamageError

_MEMBER = b',"sha256":"'
_TAIL_BYTES = len(_MEMBER) + 64 + len(b'"}\n')

Record = TypeVar("Record", bound=BaseModel)


def seal(record: BaseModel) -> bytes:
    """The record as one sealed line."""
    body = json.dumps(
        record.model_dump(mode="json"), ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode()
    return body[:-1] + _MEMBER + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def unseal(data: bytes, model: type[Record], key: str) -> Record:
    """Check and parse the sealed object found at `key`.

    Raises:
        DamageError: the bytes are not what was written, or not a `model`.
    """
    body = data[:-_TAIL_BYTES] + b"}"
    tail = _MEMBER + hashlib.sha256(body).hexdigest().encode() + b'"}\n'
    if data[-_TAIL_BYTES:] != tail:
        raise DamageError(f"{key}: the record does not match its own sha256", key=key)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise DamageError(f"{key}: not a {model.__name__}: {error}", key=key) from None


def digest(data: bytes | bytearray | memoryview) -> str:
    """sha256 of whole objects, in hex, as commits name them."""
    return hashlib.sha256(data).hexdigest()
