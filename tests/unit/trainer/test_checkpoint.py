from pathlib import Path
from typing import Any

import pytest
import torch

from infra.models.folder import open_model
from schemas.errors import ResumeError
from schemas.strict import parse
from schemas.train_config import TrainConfig
from trainer import checkpoint
from trainer.checkpoint import HOME, Checkpoint, RunState, Trained
from trainer.ema import Ema
from trainer.heads import Heads, Widths
from trainer.recipe import changes, recipe
from trainer.students import build_student, describe

pytestmark = pytest.mark.unit


def config_of(out: Path, **changes: Any) -> TrainConfig:
    data = {"cache": "caches/photos", "student": {"model": "timm:test_vit"}, "out": str(out)}
    return parse(TrainConfig, data | changes, "test")


class Run:
    """A student with a step's worth of optimiser state."""

    def __init__(self, out: Path, seed: int = 0, decay: float | None = None) -> None:
        self.out = out
        encoder = build_student("timm:test_vit", seed)
        heads = Heads(Widths(64, 64), {"a": Widths(4, 4)}, hidden=8, seed=seed)
        optimizer = torch.optim.AdamW([*encoder.model.parameters(), *heads.parameters()], lr=1e-3)
        ema = None if decay is None else Ema(encoder, decay)
        self.heads = heads
        self.trained = Trained(encoder, heads, optimizer, ema)

    def learn(self) -> None:
        cls, tokens = self.trained.encoder(torch.ones(1, 3, 32, 32))
        assert cls is not None
        told = [self.heads.predict("a", "tokens", tokens), self.heads.predict("a", "cls", cls)]
        sum(features.square().sum() for features in told).backward()  # type: ignore[union-attr]
        self.trained.optimizer.step()
        if self.trained.ema is not None:
            self.trained.ema.update()

    def save(self, step: int, config: TrainConfig, keep: int = 3) -> Checkpoint:
        record = describe(
            self.trained.finished,
            config.student.model,
            grid=2,
            stage=config.stage,
            step=step,
            snapshot=4,
            teachers={},
        )
        state = RunState(
            step=step,
            loss=0.5,
            stream={"epoch": 0, "row": step},
            snapshots={"cache": 4},
            accumulate=1,
            recipe=recipe(config),
        )
        return checkpoint.save(self.out / HOME, state, self.trained, record, keep)

    def weights(self) -> list[torch.Tensor]:
        modules = (self.trained.encoder.model, self.heads, self.trained.finished.model)
        return [value for module in modules for value in module.parameters()]


def silent(text: str) -> None:
    raise AssertionError(text)


@pytest.mark.parametrize("decay", [None, 0.5])
def test_load__goes_on_to_the_bit(tmp_path: Path, decay: float | None) -> None:
    config = config_of(tmp_path)
    first, second = Run(tmp_path, 0, decay), Run(tmp_path, 1, decay)
    for _ in range(2):
        first.trained.optimizer.zero_grad()
        first.learn()
    first.save(1, config)
    found = checkpoint.latest(tmp_path, silent)
    assert found is not None
    assert found.state.stream == {"epoch": 0, "row": 1}
    checkpoint.load(found, second.trained)
    for run in (first, second):
        run.trained.optimizer.zero_grad()
        run.learn()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first.weights(), second.weights()))


@pytest.mark.parametrize("decay", [None, 0.5])
def test_checkpoint__can_be_opened_as_a_student(tmp_path: Path, decay: float | None) -> None:
    run = Run(tmp_path, decay=decay)
    run.learn()
    folder = run.save(3, config_of(tmp_path)).folder
    assert folder == tmp_path / "checkpoints" / "3"
    opened, record = open_model(folder)
    assert (record.step, record.snapshot, record.grid) == (3, 4, 2)
    picture = torch.randn(1, 3, 32, 32)
    assert torch.equal(opened(picture)[0], run.trained.finished(picture)[0])


def test_save__keeps_the_newest(tmp_path: Path) -> None:
    run, config = Run(tmp_path), config_of(tmp_path)
    for step in (2, 9, 10, 11):
        run.save(step, config, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "11"]


def test_latest__sees_no_junk(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path, silent) is None
    home = tmp_path / "checkpoints"
    (home / ".partial-1").mkdir(parents=True)
    (home / ".partial-1" / "state.json").write_text("{")
    (home / "notes").mkdir()
    (home / "12").write_text("not a folder")
    assert checkpoint.latest(tmp_path, silent) is None
    run = Run(tmp_path)
    run.save(9, config_of(tmp_path))
    run.save(10, config_of(tmp_path))
    found = checkpoint.latest(tmp_path, silent)
    assert found is not None
    assert found.state.step == 10
    assert not (home / ".partial-1").exists()
    assert (home / "notes").exists()


@pytest.mark.parametrize(
    "name", ["state.json", "student.safetensors", "heads.safetensors", "optimizer.pt", "model.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_latest__passes_over_a_damaged_one(tmp_path: Path, name: str, damage: str) -> None:
    run, config = Run(tmp_path), config_of(tmp_path)
    run.save(1, config)
    file = run.save(2, config).folder / name
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[:-1])
    else:
        file.unlink()
    warnings: list[str] = []
    found = checkpoint.latest(tmp_path, warnings.append)
    assert found is not None
    assert found.state.step == 1
    assert len(warnings) == 1
    assert name in warnings[0]
    assert run.save(2, config).state.step == 2
    again = checkpoint.latest(tmp_path, silent)
    assert again is not None
    assert again.state.step == 2


def test_latest__refuses_when_all_are_damaged(tmp_path: Path) -> None:
    folder = Run(tmp_path).save(1, config_of(tmp_path)).folder
    (folder / "optimizer.pt").unlink()
    with pytest.raises(ResumeError, match=r"all 1 of its checkpoints are damaged; remove"):
        checkpoint.latest(tmp_path, lambda text: None)


def test_save__interrupted_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = Run(tmp_path), config_of(tmp_path)
    run.save(1, config)

    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sync_folder", stop)
        with pytest.raises(KeyboardInterrupt):
            run.save(2, config)
    found = checkpoint.latest(tmp_path, silent)
    assert found is not None
    assert found.state.step == 1
    run.save(2, config)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def changed(before: TrainConfig, now: TrainConfig) -> list[str]:
    return changes(recipe(before), {"cache": 4, "more": 2}, now)


def test_recipe__other_is_told_field_by_field(tmp_path: Path) -> None:
    mix = {"more": {"cache": "caches/more", "share": 0.1, "snapshot": 2}}
    config = config_of(tmp_path, teachers={"a": {"weight": 1.0}}, mix=mix)
    other = config_of(
        tmp_path,
        cache="caches/others",
        snapshot=3,
        mix={"more": {"cache": "caches/more", "share": 0.2, "snapshot": 5}},
        stage="multires",
        student={"model": "eupe_vit_s", "arguments": {"depth": 3}, "rope_rescale": 2},
        teachers={"a": {"weight": 0.5}, "b": {}},
        student_grids=[24],
        views=[0],
        augment={"blur": 0.5},
        loss={"patch": {"beta": 2.0}},
        head={"hidden": 8},
        optim={"lr": 1e-4, "ema": 0.9},
        seed=1,
    )
    lines = changed(config, other)
    assert {line.split()[0] for line in lines} == {
        "cache",
        "snapshot",
        "mix.more.share",
        "mix.more.snapshot",
        "stage",
        "student.model",
        "student.arguments.depth",
        "student.rope_rescale",
        "teachers.a.weight",
        "teachers.b.weight",
        "teachers.b.grids",
        "teachers.b.codec",
        "teachers.b.drop",
        "student_grids",
        "views",
        "augment.blur",
        "loss.patch.beta",
        "head.hidden",
        "optim.lr",
        "optim.ema",
        "seed",
    }
    text = "\n".join(lines)
    assert "was 2e-05, now 0.0001" in text
    assert "was 4, now 3" in text
    assert "was 'not set', now 1.0" in text


@pytest.mark.parametrize(
    "free",
    [
        {},
        {"snapshot": 4},
        {"snapshot": "a-tag"},
        {"checkpoint": {"every_steps": 7, "keep": 1}},
        {"loader": {"threads": 3}},
        {"max_steps": 9},
        {"images": {"root": "/moved"}},
        {"optim": {"accumulate": 4}},
        {"student": {"model": "timm:test_vit", "grad_checkpointing": True}},
        {"head": {"hidden": 3072}},
        {"compile": True},
    ],
)
def test_recipe__the_rest_may_change(tmp_path: Path, free: dict[str, Any]) -> None:
    assert changed(config_of(tmp_path), config_of(tmp_path / "elsewhere", **free)) == []
