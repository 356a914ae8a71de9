from pathlib import Path
from typing import Any

import pytest
import torch

from infra.models.folder import open_model
from infra.models.timm_encoder import Encoder
from schemas.errors import ResumeError
from schemas.strict import parse
from schemas.train_config import TrainConfig
from trainer import checkpoint
from trainer.checkpoint import Checkpoint, RunState
from trainer.heads import Heads, Widths
from trainer.students import build_student, describe

pytestmark = pytest.mark.unit


def config_of(out: Path, **changes: Any) -> TrainConfig:
    data = {"cache": "caches/photos", "student": {"model": "timm:test_vit"}, "out": str(out)}
    return parse(TrainConfig, data | changes, "test")


class Run:
    """A student with a step's worth of optimiser state."""

    def __init__(self, out: Path, seed: int = 0) -> None:
        self.out = out
        self.encoder: Encoder = build_student("timm:test_vit", seed)
        self.heads = Heads(Widths(64, 64), {"a": Widths(4, 4)}, hidden=8, seed=seed)
        parameters = [*self.encoder.model.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    def learn(self) -> None:
        cls, tokens = self.encoder(torch.ones(1, 3, 32, 32))
        told = self.heads(cls, tokens)["a"]
        (told.tokens.square().sum() + told.cls.square().sum()).backward()
        self.optimizer.step()

    def save(self, step: int, config: TrainConfig, keep: int = 3) -> Checkpoint:
        record = describe(
            self.encoder,
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
            snapshot=4,
            recipe=checkpoint.recipe(config),
        )
        return checkpoint.save(
            self.out, state, self.encoder.model, self.heads, self.optimizer, record, keep
        )

    def weights(self) -> list[torch.Tensor]:
        return [*self.encoder.model.parameters(), *self.heads.parameters()]


def silent(text: str) -> None:
    raise AssertionError(text)


def test_load__goes_on_to_the_bit(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    first, second = Run(tmp_path, seed=0), Run(tmp_path, seed=1)
    first.learn()
    first.save(1, config)
    found = checkpoint.latest(tmp_path, silent)
    assert found is not None
    assert found.state.stream == {"epoch": 0, "row": 1}
    checkpoint.load(found, second.encoder.model, second.heads, second.optimizer)
    for run in (first, second):
        run.optimizer.zero_grad()
        run.learn()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first.weights(), second.weights()))


def test_checkpoint__can_be_opened_as_a_student(tmp_path: Path) -> None:
    run = Run(tmp_path)
    folder = run.save(3, config_of(tmp_path)).folder
    assert folder == tmp_path / "checkpoints" / "3"
    opened, record = open_model(folder)
    assert (record.step, record.snapshot, record.grid) == (3, 4, 2)
    picture = torch.randn(1, 3, 32, 32)
    assert torch.equal(opened(picture)[0], run.encoder(picture)[0])


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


def test_recipe__other_is_refused_field_by_field(tmp_path: Path) -> None:
    config = config_of(tmp_path, teachers={"a": {"weight": 1.0}})
    found = Run(tmp_path).save(5, config)
    other = config_of(
        tmp_path,
        cache="caches/others",
        snapshot=3,
        student={"model": "eupe_vit_s"},
        teachers={"a": {"weight": 0.5}, "b": {}},
        student_grids=[24],
        views=[0],
        loss={"patch": {"beta": 2.0}},
        head={"hidden": 8},
        optim={"lr": 1e-4},
        seed=1,
    )
    with pytest.raises(ResumeError) as refusal:
        checkpoint.refuse_other_recipe(found, other)
    lines = [line.split() for line in str(refusal.value).splitlines()[1:-1]]
    assert {line[0] for line in lines} == {
        "cache",
        "snapshot",
        "student.model",
        "teachers.a.weight",
        "teachers.b.weight",
        "teachers.b.grids",
        "student_grids",
        "views",
        "loss.patch.beta",
        "head.hidden",
        "optim.lr",
        "seed",
    }
    text = str(refusal.value)
    assert "was 2e-05, now 0.0001" in text
    assert "was 4, now 3" in text
    assert "was 'not set', now 1.0" in text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"snapshot": 4},
        {"checkpoint": {"every_steps": 7, "keep": 1}},
        {"loader": {"threads": 3}},
        {"max_steps": 9},
        {"images": {"root": "/moved"}},
    ],
)
def test_recipe__the_rest_may_change(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = Run(tmp_path).save(5, config_of(tmp_path))
    checkpoint.refuse_other_recipe(found, config_of(tmp_path / "elsewhere", **changes))
