"""How much one picture may ask for; what is beyond becomes a bad row, before it is decoded."""

from pydantic import Field

from schemas.strict import StrictModel


class Limits(StrictModel):
    max_pixels: int = Field(2**27, ge=1, le=2 * 89478485)
    """Of one picture. Decoding takes 4 to 20 bytes a pixel, by its format, on each thread."""
    max_bytes: int = Field(2**28, ge=1)
    """Of one encoded picture."""
