import pickle
import re

import pytest

from schemas import errors
from schemas.errors import TeachonceError


def tree(kind: type[TeachonceError]) -> list[type[TeachonceError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in tree(child))]


@pytest.mark.parametrize("kind", tree(TeachonceError), ids=lambda kind: kind.__name__)
def test_error__survives_pickling_whole(kind: type[TeachonceError]) -> None:
    error = pickle.loads(pickle.dumps(kind("reading a/b failed", key="a/b", row=7)))
    assert type(error) is kind
    assert str(error) == "reading a/b failed"
    assert (error.key, error.row) == ("a/b", 7)


def test_docstring_tree__is_the_class_tree() -> None:
    drawn = re.findall(r"^([ │├└─]*)([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE)
    parents: list[str] = []
    edges = set()
    for branch, name in drawn:
        depth = len(branch) // 4
        if not branch and name != "TeachonceError":
            continue  # prose
        parents[depth:] = [name]
        if depth:
            edges.add((parents[depth - 1], name))
    assert edges == {
        (parent.__name__, child.__name__)
        for parent in tree(TeachonceError)
        for child in parent.__subclasses__()
    }


def test_exit_status__is_2_where_nothing_was_started() -> None:
    status = {kind.__name__: kind.exit_status for kind in tree(TeachonceError)}
    assert [name for name, code in status.items() if code == 2] == [
        "ConfigError",
        "CacheError",
        "TeacherError",
        "ResumeError",
    ]
    assert set(status.values()) == {1, 2}
