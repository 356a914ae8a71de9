"""What one request of a store came to, and whether it is made again.

Nothing is made again that cannot get better; what can is, with growing random pauses, until
patience ends. The libraries' own words do not reach a message: a server repeats in its reply what
was signed, a session's token included.
"""

import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from obstore.exceptions import BaseError, InvalidPathError

from infra.s3_client import Place
from schemas.errors import NotFound, StoreError

PATIENCE_S = 60.0
"""With a store that answers badly: throttling, server errors, lost or cut replies."""
UNREACHABLE_PATIENCE_S = 15.0
"""With an endpoint that no connection can be made to."""
LEAST_ATTEMPTS = 2
"""Even where the first has used up all patience, as sending a large object may."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 8.0
# Not the generator that a run seeds: its workers would come back all at the same moment.
_random = random.SystemRandom()

Doing = Literal["writing", "reading", "listing", "removing"]
Answer = TypeVar("Answer")

_CONFLICT = 409
"""Two conditional writes at the same moment: neither is told that the other won."""
_PASSING = frozenset({408, _CONFLICT, 425, 429, 500, 502, 503, 504})
_REGION = "the bucket is in another region{region}; set store.region or AWS_REGION"
_EXPIRED = "the credentials have expired; get new ones and run again, what was committed stays"
_TO_DO = {
    "InvalidAccessKeyId": "the store does not know the access key; check AWS_ACCESS_KEY_ID or "
    "store.profile, and store.endpoint",
    "SignatureDoesNotMatch": "the secret key is not the access key's; check AWS_SECRET_ACCESS_KEY "
    "or store.profile",
    "ExpiredToken": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "NameOfNoKey": "an object of somebody else lies below this prefix; give the cache its own",
    "WholeObject": "the store ignores the range of a read; use one that honours it",
    "NotImplemented": "the store does not know what was asked; it must honour If-None-Match on "
    "PUT, see store.endpoint",
}
_TO_DO_BY_STATUS = {
    301: _REGION,
    401: "no valid credentials; check AWS_ACCESS_KEY_ID or store.profile",
    403: "access was denied; the credentials need s3:ListBucket, s3:GetObject and s3:PutObject "
    "here, s3:DeleteObject to remove (without the first, S3 says so of every object that is not "
    "there)",
    404: "there is no bucket {bucket}; create it, or correct the cache's URL or store.endpoint",
}


class ShortReply(Exception):
    """Fewer bytes came than the server had announced."""


@dataclass(frozen=True)
class Fault:
    """How a request failed."""

    status: int | None
    """Of the server's answer, if there was one."""
    code: str
    """S3's word for it, or ours."""
    region: str
    """Where the server says the bucket is."""

    @classmethod
    def of(cls, error: Exception) -> "Fault":
        if isinstance(error, ShortReply):
            return cls(None, "a short reply", "")
        if isinstance(error, InvalidPathError):
            return cls(200, "NameOfNoKey", "")
        text = str(error)
        status = re.search(r"non-2xx status code: (\d{3})", text)
        code = re.search(r"<Code>(\w+)</Code>", text)
        region = re.search(r"<Region>([\w-]+)</Region>", text)
        if status is not None:
            word = code[1] if code is not None else ""
            return cls(int(status[1]), word, region[1] if region is not None else "")
        if "redirect without LOCATION" in text:
            return cls(301, "", "")
        if "non-partial response" in text:
            return cls(200, "WholeObject", "")
        if "credential provider" in text:
            return cls(401, "ExpiredToken", "")
        if "kind: Connect" in text:
            return cls(None, _why_unreachable(text), "")
        return cls(None, "no reply, or half of one", "")

    @property
    def unreachable(self) -> bool:
        """Whether the server certainly never saw the request."""
        return self.code.startswith("no connection")

    @property
    def passing(self) -> bool:
        return self.status is None or self.status in _PASSING or self.code == "RequestTimeout"

    def told(self, place: Place) -> str:
        """What was found and what to do next."""
        if self.unreachable:
            return f"{self.code}; check store.endpoint, AWS_ENDPOINT_URL and the network"
        if self.passing:
            found = f"{self.status or ''} {self.code}".strip()
            return f"{found}; what was committed stays, run again when the store is well"
        to_do = _TO_DO.get(self.code) or _TO_DO_BY_STATUS.get(self.status or 0, "not expected here")
        region = f", {self.region}" if self.region else ""
        found = f"{self.status} {self.code}".strip()
        return f"{found}: {to_do.format(region=region, bucket=place.bucket)}"


def ask(place: Place, doing: Doing, key: str, attempt: Callable[[], Answer]) -> Answer:
    """The answer to a request that may safely be made twice.

    Raises:
        NotFound: reading what is not there.
        StoreError: anything else, with what to do; also in a process that was forked.
    """
    start = time.monotonic()
    attempts = 0
    while True:
        _refuse_forked(place)
        try:
            return attempt()
        except (BaseError, OSError, ShortReply) as error:
            fault = Fault.of(error)
        # Outside the handler: the library's error must not travel along as a context.
        attempts += 1
        if doing == "reading" and fault.status == 404 and fault.code != "NoSuchBucket":
            raise NotFound(f"{place.url}: no object {key}", key=key)
        pause = _random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempts))
        waited = time.monotonic() - start
        patience = UNREACHABLE_PATIENCE_S if fault.unreachable else PATIENCE_S
        enough = attempts >= LEAST_ATTEMPTS and waited + pause > patience
        if enough or not fault.passing:
            tries = f" after {attempts} attempts in {waited:.0f} s" if attempts > 1 else ""
            what = f"{doing} {key}".strip()
            raise StoreError(f"{place}: {what} failed{tries}: {fault.told(place)}", key=key)
        time.sleep(pause)


def _why_unreachable(text: str) -> str:
    for sign, reason in (
        ("dns error", ": its name is not known"),
        ("ConnectionRefused", ": refused"),
        ("certificate", ": its certificate is not trusted"),
    ):
        if sign in text:
            return f"no connection{reason}"
    return "no connection"


_inherited = False
"""Whether this process was forked from one in which requests had been made."""
_watching = False


def _refuse_forked(place: Place) -> None:
    global _watching
    if _inherited:
        raise StoreError(
            f"{place}: this process was forked from one that had used S3 already; the threads that "
            "answer requests are not copied, so each would wait for ever. Start it with spawn or "
            "forkserver (for a DataLoader: multiprocessing_context='spawn'), or use threads"
        )
    if not _watching:
        _watching = True
        os.register_at_fork(after_in_child=_mark_inherited)


def _mark_inherited() -> None:
    global _inherited
    _inherited = True
