"""The loaders that are timed, what their normal usage is taken to be, and what each needs."""

from tests.benchmarks.damage.formats import Format

_TORCH = ("torch==2.13.0", "numpy==2.4.6")
_ZARR = ("zarr==3.1.6", "numcodecs==0.16.6", *_TORCH)

FORMATS = (
    Format("teachonce", "ours", "CacheStream, no pictures; every byte and key checked"),
    Format(
        "numpy memmap",
        "memmap",
        "one file of all rows, any row; the ceiling: nothing is checked",
    ),
    Format(
        "LitData",
        "litdata",
        "optimize, chunks of 64 MB, StreamingDataset(shuffle=True) and StreamingDataLoader",
        "litdata",
        ("litdata==0.2.76", *_TORCH),
    ),
    Format(
        "Streaming",
        "streaming",
        "MDS shards of 64 MB in a local folder, StreamingDataset(shuffle=True)",
        "streaming",
        ("mosaicml-streaming==0.13.0", "torch==2.13.0", "torchvision==0.28.0", "numpy==2.1.3"),
    ),
    Format(
        "WebDataset",
        "webdataset",
        "tar files of 64 MB, shards shuffled, a shuffle buffer of 1000 rows",
        "webdataset-torch",
        ("webdataset==1.0.2", *_TORCH),
    ),
    Format(
        "zarr-python, shards",
        "zarr_python",
        "shards of 256 rows, a row a chunk with crc32c; whole shards in random order",
        "zarr-python-torch",
        _ZARR,
        ("shards",),
    ),
    Format(
        "zarr-python, oindex",
        "zarr_python",
        "the same array, oindex of any 64 rows",
        "zarr-python-torch",
        _ZARR,
        ("oindex",),
    ),
    Format(
        "tensorstore",
        "tensorstore",
        "the same layout, read of any 64 rows at once; its own threads, no workers",
        "tensorstore",
        ("tensorstore==0.1.86", "numpy==2.4.6"),
    ),
)
