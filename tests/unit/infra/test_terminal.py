import pytest

from infra import terminal as module
from infra.terminal import Terminal, human_bytes


def test_terminal__says_plainly_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    text = "s3://b/[bold]x[/bold]/x :key: " + "long " * 60
    Terminal().say(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_terminal__decisions_have_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().decide("device", "cpu", "torch sees no GPU")
    assert capsys.readouterr().out == "device       cpu  (torch sees no GPU)\n"


def test_terminal__warnings_and_json_runs_go_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Terminal(to_stderr=True).say("one")
    Terminal().warn("two")
    assert capsys.readouterr() == ("", "one\nwarning: two\n")


def test_progress__off_a_terminal_is_a_plain_line_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Terminal().progress("extract", 1000, "rows") as meter:
        for _ in range(100):
            meter.advance(10, note="3 bad")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("extract  1,000/1,000 rows  ")
    assert "rows/s  3 bad" in lines[0]
    assert "\x1b" not in lines[0]


def test_progress__says_how_long_it_will_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 5.0, 10.0, 15.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with Terminal().progress("extract", 400, "rows") as meter:
        for _ in range(3):
            meter.advance(50)
    assert capsys.readouterr().out == "extract  100/400 rows  10.0 rows/s  30 s left\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (2.5e9, "2.5 GB"), (1e19, "10,000.0 PB")],
)
def test_human_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text
