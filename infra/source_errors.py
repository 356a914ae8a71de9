"""What the errors of file systems come to.

Each file system has errors of its own: botocore's and aiohttp's derive from nothing that these
libraries share, and either may not be installed. So the boundary catches everything, once for each
thing that is done, and says what was found and what to do. Many quote a URL: what is in it that
nobody is to see does not pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from infra.redact import harmless, printable, public_url
from schemas.errors import ConfigError, ImageError, SourceError, TeachonceError

_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or name a public place by "
    "https://"
)
_NETWORK = "check the address, for S3 also AWS_ENDPOINT_URL, and the network"
_TO_DO = {
    "NoCredentialsError": _CREDENTIALS,
    "PartialCredentialsError": _CREDENTIALS,
    "ProfileNotFound": _CREDENTIALS,
    "EndpointConnectionError": _NETWORK,
    "ConnectTimeoutError": _NETWORK,
    "SSLError": _NETWORK,
    "ClientConnectorError": _NETWORK,
    "ClientConnectorDNSError": _NETWORK,
    "ClientConnectorCertificateError": _NETWORK,
    "PermissionError": "make it readable; what is remote, by its credentials",
}
"""By the name of the error's class, which needs no import."""
_OF_THE_CREDENTIALS = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed"}
    | {"InvalidSecurity", "AccountProblem"}
)
"""What S3 calls a refusal that is of whoever asks and not of the picture that is asked for."""
_NOT_OF_THE_PICTURE = frozenset({401, 407, 408, 425, 429})
"""Refusals of HTTP that say nothing about the picture either."""


@contextmanager
def opening(url: str) -> Iterator[None]:
    """Around whatever finds out what a data set is.

    Raises:
        ConfigError: it cannot be found out.
    """
    try:
        yield
    except TeachonceError:
        raise
    except Exception as error:
        raise ConfigError(f"images {public_url(url)}: {_told(error)}") from None


@contextmanager
def listing(url: str) -> Iterator[None]:
    """Around whatever asks which pictures there are.

    Raises:
        SourceError: a disk or a server failed. ConfigError: it could not even be asked.
    """
    try:
        yield
    except TeachonceError:
        raise
    except OSError as error:
        raise SourceError(
            f"images {url}: listing failed: {_told(error)}; make it readable and run again"
        ) from None
    except Exception as error:
        raise ConfigError(f"images {url}: listing failed: {_told(error)}") from None


@contextmanager
def reading(url: str, key: str) -> Iterator[None]:
    """Around whatever reads one picture.

    Raises:
        ImageError: it is gone (`missing`), or may not be read.
        SourceError: anything else, which may pass.
    """
    try:
        yield
    except TeachonceError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ImageError("is no longer in the data set", missing=True) from None
    except Exception as error:
        fact = _fact_about_the_picture(error)
        if fact is not None:
            raise fact from None
        raise SourceError(
            f"images {url}: reading {printable(key)} failed: {_told(error)}; what was committed "
            "stays, run again when the data set can be read"
        ) from None


def _fact_about_the_picture(error: Exception) -> ImageError | None:
    status = getattr(error, "status", None)  # of HTTP
    refused = isinstance(status, int) and 400 <= status < 500
    if refused and status not in _NOT_OF_THE_PICTURE:
        return ImageError(f"cannot be read: the server answers {status}", missing=status == 410)
    # Of an expired credential every picture would be a bad row, for ever.
    if isinstance(error, PermissionError) and _code(error) not in _OF_THE_CREDENTIALS:
        return ImageError(f"cannot be read: {harmless(str(error.strerror or error))}")
    return None


def _code(error: Exception) -> str:
    """S3's word for what the error says in words."""
    answer = getattr(error.__cause__, "response", None)
    return str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""


def _told(error: Exception) -> str:
    name = type(error).__name__
    # A system's own words without the path, which stands in the message already.
    found = str(getattr(error, "strerror", None) or error) or name
    to_do = _TO_DO.get(name)
    return harmless(found) + (f"; {to_do}" if to_do else "")
