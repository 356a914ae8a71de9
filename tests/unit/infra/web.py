"""A small web server for the tests."""

from http.server import BaseHTTPRequestHandler


class Web(BaseHTTPRequestHandler):
    """Pictures by their paths; counts what is asked."""

    files: dict[str, bytes] = {}
    failures: list[int] = []
    """Statuses of the next answers."""
    gives_parts = True
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        data = self.files.get(self.path.partition("?")[0])
        status = 404 if data is None else 200
        if self.path.startswith("/status/"):
            status = int(self.path.rpartition("/")[2].partition(".")[0])
        elif self.failures:
            status = self.failures.pop()
        found = self.headers.get("Range", "")
        if status == 200 and data and found and self.gives_parts:
            first, _, last = found.removeprefix("bytes=").partition("-")
            data, status = data[int(first) : int(last) + 1], 206
        self.send_response(status)
        body = data if status in (200, 206) and data else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None: ...
