"""The CIFAR-10 recipe: its configurations, its steps, and what it makes of their results."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from infra.command import read_config
from infra.models.folder import open_model
from infra.models.timm_encoder import build_timm
from infra.recipes.cifar10 import online as online_training
from infra.recipes.cifar10 import table
from infra.recipes.cifar10.chain import CODECS, HERE, Chain, Step, take
from infra.recipes.cifar10.train_expert import OBJECTIVES, Expert, Sample
from schemas.codec import codec_label
from schemas.extract_config import ExtractConfig
from schemas.options import EvaluateOptions, VerifyOptions
from schemas.strict import parse
from schemas.train_config import TrainConfig
from tests.caches import Quiet, config_of, extract_here, pictures
from trainer import train
from trainer.feed import open_feed
from trainer.stages import check_stage
from trainer.students import build_student, describe, save_model

pytestmark = pytest.mark.integration

MODELS: dict[str, tuple[type[BaseModel], tuple[str, ...]]] = {
    "extract": (ExtractConfig, ()),
    "verify": (VerifyOptions, ("cache",)),
    "train": (TrainConfig, ()),
    "evaluate": (EvaluateOptions, ()),
}


def all_steps(quick: bool = False, seeds: int = 3, codecs: bool = True) -> list[Step]:
    return list(Chain(Path("pictures.parquet"), seeds, codecs, quick).steps())


def read(step: Step) -> Any:
    """The configuration of a step, as its command will read it."""
    words = [str(word) for word in step.words if word != "--json"]
    command = "train" if step.module.endswith("online") else words.pop(0)
    model, positional = MODELS[command]
    return read_config(model, positional, words)


@pytest.mark.parametrize("quick", [False, True])
def test_steps__are_commands_that_can_be_read(quick: bool) -> None:
    steps = all_steps(quick)
    assert len({step.name for step in steps}) == len(steps)
    configs = [read(step) for step in steps if "--config" in step.words or "--json" in step.words]
    trainings = [config for config in configs if isinstance(config, TrainConfig)]
    assert len({config.out for config in trainings}) == len(trainings)
    for config in trainings:
        check_stage(config)
        assert config.optim.steps == 20 or not quick


def test_comparisons__are_of_equal_trainings() -> None:
    by_name = {
        step.name: read(step)
        for step in all_steps()
        if step.name.startswith("train-") and "--config" in step.words
    }
    for seed in range(3):
        cached, online = (by_name[f"train-{kind}-{seed}"] for kind in ("fixed", "online"))
        assert cached.seed == online.seed == seed
        assert cached.model_copy(update={"out": online.out}) == online
        for label in CODECS:
            fewer = by_name[f"train-{label}-{seed}"]
            assert fewer.teachers["proxy"].codec == label
            terms = {"teachers": cached.teachers, "out": cached.out}
            assert fewer.model_copy(update=terms) == cached
    direct, fixed = by_name["train-direct"], by_name["train-fixed-0"]
    for name in ("student", "student_grids", "head", "optim", "precision", "seed", "views"):
        assert getattr(direct, name) == getattr(fixed, name), name
    assert by_name["train-multires"].student.init == fixed.out


def test_figures__are_of_every_model() -> None:
    measured = {
        step.name.removeprefix("evaluate-")
        for step in all_steps(seeds=1, codecs=False)
        if step.name.startswith("evaluate-")
    }
    assert measured == set(table.ROWS)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives__are_learnt_from(name: str) -> None:
    arguments = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "output_stride": 8}
    torch.manual_seed(0)
    model = Expert(build_timm("resnet18", arguments, "random:0"), OBJECTIVES[name].outputs).train()
    pixels = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    sample = Sample(pixels, torch.arange(8), torch.Generator().manual_seed(0))
    loss = OBJECTIVES[name].loss(model, sample, 24)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert all(value.grad is not None for value in model.parameters())


def test_turns__are_those_that_are_asked_for() -> None:
    """A model that answers by where the bright edge is gets every turn right."""

    class Edge(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            shades = pixels.mean(dim=1)
            edges = (shades[:, 0], shades[:, :, 0], shades[:, -1], shades[:, :, -1])
            return torch.stack([edge.mean(dim=1) for edge in edges], dim=1)

    pixels = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
    pixels[:, :, :6] = 255
    sample = Sample(pixels, torch.zeros(8, dtype=torch.int64), torch.Generator().manual_seed(0))
    edge: Any = Edge()
    assert OBJECTIVES["turns"].loss(edge, sample, 16) < 1e-3


def test_step__is_taken_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results").mkdir()
    step = Step("say", "json.tool", (tmp_path / "said.json", "--compact"))
    (tmp_path / "said.json").write_text('{"step":3}')
    take(step, tmp_path)
    assert "== say took" in capsys.readouterr().out
    kept = json.loads((tmp_path / "results/say.json").read_text())
    assert kept["found"] == {"step": 3}
    take(step, tmp_path)
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="no ended with status 2"):
        take(Step("no", "json.tool", (tmp_path / "absent",)), tmp_path)
    assert not (tmp_path / "results/no.json").exists()


def test_table__has_what_there_is(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()

    def keep(name: str, **found: object) -> None:
        (results / f"{name}.json").write_text(json.dumps({"seconds": 60.0, "found": found}))

    for seed, gap in ((0, 0.01), (1, 0.03)):
        for kind, share in (("fixed", 0.5 + gap), ("online", 0.5)):
            keep(f"train-{kind}-{seed}", rows_per_second=100.0)
            keep(f"evaluate-{kind}-{seed}", knn_top1=share, linear_top1=0.6, parameters=2_000_000)
    said = table.collect(tmp_path)
    assert "| student from the proxy, one grid | 0.5100 | 0.6000 | 2.00 M |" in said
    assert "| 1 | 0.5300 | 0.5000 | 0.6000 | 0.6000 | 100 | 100 |" in said
    assert "knn_top1, cached - online: mean +0.0200, standard error 0.0100, 2 pairs" in said
    assert "| all | 480 |" in said
    assert len(json.loads((tmp_path / "results.json").read_text())) == 8


@pytest.fixture(scope="module")
def proxy_cache(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A training from a cache of a trained model, whose folder is there."""
    folder = tmp_path_factory.mktemp("online")
    encoder = build_student("timm:test_vit", 1)
    told: dict[str, Any] = {"grid": 2, "stage": "proxy", "step": 1, "snapshot": 1, "teachers": {}}
    save_model(folder / "proxy", encoder, describe(encoder, "timm:test_vit", **told))
    teacher = {"library": "teachonce", "weights": str(folder / "proxy")}
    source = pictures(folder / "pictures", 24)
    extract_here(config_of(folder / "cache", source, teachers={"proxy": teacher}))
    return parse(
        TrainConfig,
        {
            "cache": str(folder / "cache"),
            "student": {"model": "timm:test_vit"},
            "student_grids": [2],
            "head": {"hidden": 16},
            "optim": {"lr": 1e-3, "steps": 4, "batch_size": 8},
            "precision": "float32",
            "out": str(folder / "cached"),
        },
        "test",
    )


def test_online__teacher_says_what_is_in_the_cache(proxy_cache: TrainConfig) -> None:
    feed = open_feed(proxy_cache, [32])
    (teacher,) = online_training.open_teachers(proxy_cache, feed).values()
    batch = next(iter(feed))
    cached, live = batch.targets["proxy"], teacher(batch.pixels, 2)
    for one, other in ((cached.tokens, live.tokens), (cached.cls, live.cls)):
        assert one is not None
        assert other is not None
        assert other.dtype == torch.float32
        torch.testing.assert_close(one.float(), other, atol=1e-3, rtol=1e-3)
    with pytest.raises(SystemExit, match="pictures of one size"):
        teacher(batch.pixels[..., :16, :16], 2)


def test_online__student_is_the_cached_one_but_for_rounding(proxy_cache: TrainConfig) -> None:
    cached = train.run(proxy_cache, Quiet()).result
    out = str(Path(proxy_cache.out).with_name("online"))
    online = online_training.run(proxy_cache.model_copy(update={"out": out}), Quiet())
    assert (cached["step"], online["step"]) == (4, 4)
    assert online["loss"] == pytest.approx(cached["loss"], abs=1e-3)
    ours, theirs = (open_model(Path(folder))[0].model for folder in (out, proxy_cache.out))
    for one, other in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)


def test_configurations__are_named_by_the_chain() -> None:
    named = {Path(str(word)) for step in all_steps() for word in step.words}
    assert {*HERE.glob("*.yaml")} <= named


def test_codecs__have_the_labels_that_extract_gives_them() -> None:
    found = {
        step.name.removeprefix("extract-"): codec_label(read(step).codec)
        for step in all_steps()
        if step.name.startswith(("extract-int", "extract-variable"))
    }
    assert found == {label: label for label in CODECS}


def test_table__says_what_fewer_bits_cost(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    top1 = {"fixed": (0.60, 0.62), "online": (0.61, 0.61), "int8": (0.58, 0.61)}
    for kind, values in top1.items():
        for seed, value in enumerate(values):
            found = {"knn_top1": value, "linear_top1": value, "parameters": 1}
            for step in (f"evaluate-{kind}-{seed}", f"train-{kind}-{seed}"):
                told = {"seconds": 1.0, "found": {**found, "rows_per_second": 1.0}}
                (tmp_path / "results" / f"{step}.json").write_text(json.dumps(told))
    lines = table.collect(tmp_path).splitlines()
    assert "| fp16 | 0.6100 |  | 0.6100 |  | 2 |" in lines
    # Of -0.02 and -0.01 the standard error is 0.005; Student's t of two seeds is 12.706.
    cells = "0.5950 | -0.0150 ± 0.0635"
    assert f"| int8 | {cells} | {cells} | 2 |" in lines
