from hypothesis import given
from hypothesis import strategies as st

from schemas import layout
from schemas.layout import SetPath

SETS = st.builds(
    SetPath,
    st.text("0123456789abcdef", min_size=12, max_size=12),
    st.integers(1, 256),
    st.from_regex(r"[a-z0-9]{1,6}-[0-9a-f]{8}", fullmatch=True),
)
PLACES = st.tuples(SETS, st.integers(0, 10**7), st.integers(0, 10**8))
# Few of each, so that two places often differ in one thing alone.
NEAR_PLACES = st.tuples(
    st.builds(
        SetPath,
        st.sampled_from(["0" * 12, "1" * 12]),
        st.sampled_from([1, 11, 111]),
        st.sampled_from(["fp16-00000000", "fp16-00000001"]),
    ),
    st.sampled_from([0, 1, 10, 10**6]),
    st.sampled_from([0, 1, 10, 1024, 10**8]),
)


@given(SETS)
def test_set_path__parse_undoes_str(path: SetPath) -> None:
    assert SetPath.parse(str(path)) == path


def keys_of(path: SetPath, generation: int, shard: int) -> dict[tuple[object, ...], str]:
    """Every key that a place has, by what it depends on."""
    return {
        ("plan", generation, shard): layout.plan_part(generation, shard, "a1"),
        ("plan commit", generation): layout.plan_commit(generation),
        ("snapshot", generation): layout.snapshot(generation, "a1"),
        ("snapshot commit", generation): layout.snapshot_commit(generation),
        ("teacher", path.fingerprint12): layout.teacher(path.fingerprint12),
        ("calibration", path.fingerprint12, path.grid): layout.calibration(
            path.fingerprint12, path.grid
        ),
        ("codec", path): path.codec_json,
        ("array", path, generation): path.array(generation),
        ("tokens", path, generation, shard): path.tokens(generation, shard),
        ("cls", path, generation, shard): path.cls_table(generation, shard, "a1"),
        ("commit", path, generation, shard): path.commit(generation, shard),
    }


@given(NEAR_PLACES | PLACES, NEAR_PLACES | PLACES)
def test_keys__are_equal_only_where_what_they_name_is(
    one: tuple[SetPath, int, int], other: tuple[SetPath, int, int]
) -> None:
    known = keys_of(*one) | keys_of(*other)
    assert len(set(known.values())) == len(known)


@given(PLACES)
def test_keys__a_commit_lies_under_the_prefix_that_is_listed(
    place: tuple[SetPath, int, int],
) -> None:
    path, generation, shard = place
    folder, _, name = (
        path.commit(generation, shard).removeprefix(path.commits(generation)).partition("/")
    )
    assert (int(folder), name) == (shard // 1024, f"{shard}.json")
    assert layout.plan_commit(generation).startswith(layout.PLAN_COMMITS)
    assert layout.snapshot_commit(generation).startswith(layout.SNAPSHOT_COMMITS)


def test_keys__as_stated_in_the_format() -> None:
    path = SetPath("0123456789ab", 16, "fp16-0a1b2c3d")
    assert (
        path.tokens(0, 1500) == "features/0123456789ab/g16/fp16-0a1b2c3d/000000/tokens/c/1500/0/0"
    )
    assert path.commit(2, 1500) == (
        "commits/features/0123456789ab/g16/fp16-0a1b2c3d/000002/1/1500.json"
    )
    assert layout.plan_part(3, 1, "x") == "plan/000003/00001.x.parquet"
    assert layout.snapshot(12, "x") == "snapshots/000012.x.parquet"
