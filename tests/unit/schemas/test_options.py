"""What the commands without a configuration file are asked."""

import pytest

from schemas.errors import ConfigError
from schemas.options import SnapshotsOptions
from schemas.strict import parse


@pytest.mark.parametrize(
    "tag", ["3", "paper", "3=", "3=7", "3=latest", "3=a/b", "3=..", "3=-x", "0=a", "3=a b", "3=é"]
)
def test_snapshots__what_is_no_tag(tag: str) -> None:
    with pytest.raises(ConfigError, match=r"options: 1 error\n  tag"):
        parse(SnapshotsOptions, {"cache": "c", "tag": tag}, "options")


def test_snapshots__tags_in_one_word_or_several() -> None:
    options = parse(SnapshotsOptions, {"cache": "c", "tag": "3=paper, 12=v1.2", "untag": "a-b"}, "")
    assert (options.tag, options.untag) == (("3=paper", "12=v1.2"), ("a-b",))
