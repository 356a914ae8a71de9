"""Connections to a bucket: where it is, who we are, and how long a reply may take.

All that is decided here, once: the libraries' own defaults differ, and follow other variables.
Credentials are found by botocore, as s3fs finds them for the data set's pictures, and go nowhere
but into the connection.
"""

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import botocore.credentials
import botocore.exceptions
import botocore.session
from obstore.store import S3Store as Connection

from infra.store import checked_key
from schemas.errors import ConfigError, StoreError
from schemas.store_config import StoreOptions

if TYPE_CHECKING:
    from obstore.store import S3Credential  # not there when it runs

CONNECT = timedelta(seconds=5)
REPLY = timedelta(seconds=30)
"""Without a byte from the server. It includes the time that a request's own body takes, so large
ones have a connection of their own."""
LARGE_REPLY = timedelta(minutes=10)
LARGE_BYTES = 8 << 20
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_CREDENTIALS_HOLD = timedelta(minutes=5)
"""How long temporary ones are used before botocore is asked, which renews them in good time."""


@dataclass(frozen=True)
class Place:
    """Where a store is, for whoever reads a message."""

    url: str
    bucket: str
    prefix: str
    endpoint: str | None
    region: str

    def __str__(self) -> str:
        return f"{self.url} ({self.endpoint or f'Amazon S3, {self.region}'})"


@dataclass(frozen=True)
class Connections:
    place: Place
    quick: Connection
    patient: Connection
    """For what takes long to send."""


def connect(url: str, options: StoreOptions) -> Connections:
    """Make the connections to a bucket, without asking anything of it.

    Raises:
        ConfigError: a URL, an endpoint or a profile that cannot be meant; no credentials.
    """
    bucket, prefix = _bucket_and_prefix(url)
    url = f"s3://{bucket}/{prefix}".rstrip("/")
    try:
        session = botocore.session.Session(profile=options.profile)
        endpoint = _endpoint(url, options, session)
        region = options.region or os.environ.get("AWS_REGION")
        region = region or session.get_config_variable("region") or "us-east-1"
        credentials = None if options.anonymous else session.get_credentials()
    except botocore.exceptions.BotoCoreError as error:
        raise ConfigError(
            f"cache {url}: finding credentials failed: {error}; correct store.profile, or the "
            "AWS_* variables"
        ) from None
    if credentials is None and not options.anonymous:
        raise ConfigError(
            f"cache {url}: no credentials were found; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or store.profile, or store.anonymous for a public bucket"
        )

    provider = _Provider(credentials, url) if credentials is not None else _nobody

    def connection(reply: timedelta) -> Connection:
        return Connection(
            bucket,
            endpoint=endpoint or f"https://s3.{region}.amazonaws.com",
            region=region,
            skip_signature=options.anonymous,
            credential_provider=provider,
            # Create-only by If-None-Match; and a plain DELETE, which every store has.
            conditional_put="etag",
            disable_bulk_delete=True,
            # Its own retries cannot tell a lost reply from another writer: see s3_requests.
            retry_config={"max_retries": 0},
            client_options={
                "allow_http": (endpoint or "").startswith("http://"),
                "connect_timeout": CONNECT,
                "read_timeout": reply,
                "timeout": timedelta(hours=2),
            },
        )

    place = Place(url, bucket, prefix, endpoint, region)
    return Connections(place, connection(REPLY), connection(LARGE_REPLY))


def _bucket_and_prefix(url: str) -> tuple[str, str]:
    rest = url.removeprefix("s3://")
    # Whatever stands before an @ may be a secret: it is not repeated.
    if re.match(r"[^/]*@", rest):
        raise ConfigError(
            "cache s3://...@...: credentials do not belong into the URL; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or store.profile"
        )
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket) or "?" in prefix:
        raise ConfigError(f"cache {url.partition('?')[0]}: s3://BUCKET/PREFIX is expected")
    try:
        return bucket, checked_key(prefix, url) if prefix else ""
    except StoreError:
        raise ConfigError(
            f"cache {url}: no part of the prefix may be empty, `.` or `..`, or have control "
            "characters in it"
        ) from None


def _endpoint(url: str, options: StoreOptions, session: Any) -> str | None:
    named = [options.endpoint, *map(os.environ.get, _ENDPOINT_VARIABLES)]
    named.append(session.get_scoped_config().get("endpoint_url"))
    endpoint = next((name for name in named if name), None)
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"cache {url}: the endpoint is more than http(s)://HOST:PORT; credentials do not "
            "belong into it, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or store.profile"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"cache {url}: endpoint {endpoint}: http(s)://HOST:PORT is expected")
    return endpoint.rstrip("/")


def _nobody() -> "S3Credential":
    """For requests that are not signed: otherwise obstore reads half of what the variables say."""
    return {"access_key_id": "", "secret_access_key": "", "expires_at": None}


class _Provider:
    """Gives a connection its credentials, and new ones where they expire."""

    def __init__(self, credentials: botocore.credentials.Credentials, url: str) -> None:
        self._credentials = credentials
        self._expire = isinstance(credentials, botocore.credentials.RefreshableCredentials)
        try:
            self()
        except botocore.exceptions.BotoCoreError as error:
            raise ConfigError(
                f"cache {url}: getting credentials failed: {error}; log in again"
            ) from None

    def __call__(self) -> "S3Credential":
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_HOLD if self._expire else None,
        }
