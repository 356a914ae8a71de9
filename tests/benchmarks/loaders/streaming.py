"""MosaicML Streaming: MDS shards in a local folder."""

from collections.abc import Iterator
from pathlib import Path

from infra.models.torchvision_shim import make_torchvision_importable
from tests.benchmarks.loaders.peer import BATCH, FILE_BYTES, Batch, Rows, serve

make_torchvision_importable()

from streaming import MDSWriter, StreamingDataset  # noqa: E402
from streaming.base.util import clean_stale_shared_memory  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402


def _column(shape: tuple[int, ...]) -> str:
    return f"ndarray:float16:{','.join(map(str, shape))}"


def write(truth: Rows, folder: Path) -> None:
    shapes = {"tokens": truth.tokens.shape[1:], "cls": truth.cls.shape[1:]}
    columns = {"row": "int"} | {name: _column(shape) for name, shape in shapes.items()}
    with MDSWriter(out=str(folder), columns=columns, size_limit=FILE_BYTES) as sink:
        for row, tokens, cls in truth.items():
            sink.write({"row": row, "tokens": tokens, "cls": cls})


def read(folder: Path, truth: Rows, workers: int, seed: int) -> Iterator[Iterator[Batch]]:
    clean_stale_shared_memory()
    dataset = StreamingDataset(
        local=str(folder), shuffle=True, shuffle_seed=seed, batch_size=BATCH, num_canonical_nodes=1
    )
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=workers)
    while True:
        yield (Batch(item["row"], item["tokens"], item["cls"]) for item in loader)


if __name__ == "__main__":
    serve(write, read, ["mosaicml-streaming", "torch", "numpy"])
