"""What may be shown and written down: URLs without their secrets, names without control characters.

A key stays what it is wherever it is used; it is escaped where it is printed. A URL loses its
credentials before it is written into a cache or into a message: whoever reads those may not have
them, and they may no longer be valid. Credentials belong in the environment.
"""

import re

HIDDEN = "***"

_URL = re.compile(r"(?i)([a-z][a-z0-9+.\-]*://)([^\s'\"<>]+)")
_SETTING = re.compile(
    r"(?i)\b(x-amz-[a-z-]+|aws_[a-z_]+|[a-z_-]*(?:password|passwd|secret|signature|credential)"
    r"|sig|token|(?:api|access)[_-]?key(?:[_-]?id)?)=[^\s&,;'\"]+"
)
"""A secret by its name, as it stands in a query or in a library's message."""


def public_url(url: str) -> str:
    """A path or URL without user, password, query and fragment; still to be opened where the
    credentials come from the environment. A path, and a `?` that is a wildcard, stay."""
    scheme, separator, rest = url.rpartition("://")
    if not separator:
        return url
    head = public_url(scheme) if "://" in scheme else scheme  # of a chained URL, a::b
    is_web = scheme.rpartition("::")[2].lower() in ("http", "https")
    place, mark, query = rest.partition("?")
    # A wildcard is a `?` that no assignment follows.
    if mark and not is_web and "=" not in query:
        place = rest
    if is_web:
        place = place.partition("#")[0]
    return f"{head}://{_without_user(place)}"


def _without_user(place: str) -> str:
    host, slash, path = place.partition("/")
    if "@" in host:
        return f"{host.rpartition('@')[2]}{slash}{path}"
    _, colon, port = host.partition(":")
    # A password with a slash in it, which should have been written %2F.
    if colon and not port.isdigit() and "@" in path:
        return path.rpartition("@")[2]
    return place


def printable(name: str) -> str:
    """A name on one line: whatever moves the cursor, changes colours or turns the direction of
    writing stands as its escape."""
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in name
    )


def harmless(text: str) -> str:
    """A message of several lines, whatever names and URLs stand in it: without their secrets, and
    without control characters other than the ends of lines."""
    text = _URL.sub(lambda found: _hide(found[0]), text)
    text = _SETTING.sub(rf"\1={HIDDEN}", text)
    return "\n".join(printable(line) for line in text.split("\n"))


def _hide(url: str) -> str:
    public = public_url(url)
    return public if len(public) == len(url) or "?" not in url else f"{public}?{HIDDEN}"
