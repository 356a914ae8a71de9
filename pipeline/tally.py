"""What one span took, counted while it is computed."""

from collections import defaultdict

from pipeline.job import SpanReport
from schemas.records import ShardCommit


class Tally:
    """Counts of one span; what each means, `SpanReport` says."""

    def __init__(self) -> None:
        self.forwards = self.decodes = 0
        self.decode_seconds = self.wait_seconds = self.encode_seconds = 0.0
        self.forward_seconds: dict[str, float] = defaultdict(float)

    def report(self, results: list[tuple[ShardCommit, int]], batch_size: int) -> SpanReport:
        """With what became of the shards: (the commit that stands, bytes written)."""
        written = sum(1 for _, size in results if size)
        return SpanReport(
            commits=tuple(commit for commit, _ in results),
            written=written,
            reused=len(results) - written,
            forwards=self.forwards,
            bytes_written=sum(size for _, size in results),
            decodes=self.decodes,
            decode_seconds=self.decode_seconds,
            wait_seconds=self.wait_seconds,
            forward_seconds=dict(self.forward_seconds),
            encode_seconds=self.encode_seconds,
            batch_size=batch_size,
        )
