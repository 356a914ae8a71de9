"""An S3 server for the tests, and a gateway before it that spoils chosen replies.

TEACHONCE_TEST_S3 names a server (with TEACHONCE_TEST_S3_KEY and _SECRET, as `infra/s3 up` prints
them); otherwise moto runs in this process. Each session has a bucket of its own.
"""

import functools
import http.client
import json
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

import botocore.session
import pytest

from infra.s3_store import S3Store
from schemas.store_config import StoreOptions


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    key: str
    secret: str
    bucket: str
    checks_signatures: bool

    def store(self, prefix: str | None = None, **options: Any) -> S3Store:
        """By default below a prefix that nobody else has."""
        prefix = uuid.uuid4().hex if prefix is None else prefix
        options = {"endpoint": self.endpoint, **options}
        return S3Store(f"s3://{self.bucket}/{prefix}", StoreOptions(**options))

    def client(self) -> Any:
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
        )

    def open_to_all(self, keys: str) -> None:
        """Let everybody read and write below these keys, and no longer below others."""
        statement = {
            "Effect": "Allow",
            "Principal": "*",
            "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
            "Resource": f"arn:aws:s3:::{self.bucket}/{keys}",
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self.client().put_bucket_policy(Bucket=self.bucket, Policy=policy)

    def environment(self) -> dict[str, str]:
        """What a process needs to come as the owner of the bucket, and nothing of the user's."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)


@functools.cache
def s3_server() -> S3Server:
    bucket = f"teachonce-{uuid.uuid4().hex[:12]}"
    endpoint = os.environ.get("TEACHONCE_TEST_S3")
    if endpoint:
        key, secret = (os.environ[f"TEACHONCE_TEST_S3_{name}"] for name in ("KEY", "SECRET"))
        server = S3Server(endpoint, key, secret, bucket, checks_signatures=True)
    else:
        server = S3Server(
            _moto(), "motos-own-key", "motos-own-secret", bucket, checks_signatures=False
        )
    server.client().create_bucket(Bucket=bucket)
    return server


def _moto() -> str:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    return f"http://{host}:{port}"


@dataclass(frozen=True)
class Fault:
    """What befalls one request.

    Attributes:
        kind: `answer`: it never reaches the store. `lose`: it does, the reply never comes back, but
            the connection's end does, or an `answer` instead. `stall`: a reply that is late. `cut`:
            the connection ends within the body. `shorten`: headers and body of a shorter object.
    """

    kind: Literal["answer", "lose", "stall", "cut", "shorten"]
    status: int = 0
    code: str = ""
    seconds: float = 0.0
    method: str = ""


class FaultyGateway:
    """Passes requests on to a server; `strike` says what befalls the next ones.

    Host and path stay as they were signed, so the server's check of the signature is its own.

    Args:
        drops: a header that is not passed on.
    """

    def __init__(self, server: S3Server, drops: str = "") -> None:
        self.faults: deque[Fault] = deque()
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Method and headers (names in lower case) of all that came, in order."""
        self._upstream = urlsplit(server.endpoint).netloc
        self._drops = drops
        self._lock = threading.Lock()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                gateway.handle(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_request  # noqa: N815

            def log_message(self, format: str, *args: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.handle_error = lambda request, address: None  # type: ignore[method-assign]
        self.server = replace(server, endpoint=f"http://127.0.0.1:{self._http.server_port}")

    @contextmanager
    def running(self) -> Iterator["FaultyGateway"]:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()

    def strike(self, kind: Any, times: int = 1, **details: Any) -> None:
        self.faults.extend([Fault(kind, **details)] * times)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        fault = None
        with self._lock:
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.requests.append((request.command, headers))
            if self.faults and self.faults[0].method in ("", request.command):
                fault = self.faults.popleft()
        if fault is not None and fault.kind == "answer":
            return _answer(request, fault)
        status, reply_headers, reply = self._pass_on(request, body)
        if fault is None:
            return _reply(request, status, reply_headers, reply)
        if fault.kind == "lose" and fault.status:
            return _answer(request, fault)
        request.close_connection = True
        if fault.kind == "stall":
            time.sleep(fault.seconds)
            _reply(request, status, reply_headers, reply)
        if fault.kind in ("cut", "shorten"):
            if fault.kind == "shorten":
                reply_headers["Content-Length"] = str(len(reply) // 2)
            _reply(request, status, reply_headers, reply[: len(reply) // 2])
        return None

    def _pass_on(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection(self._upstream, timeout=30)
        try:
            upstream.putrequest(
                request.command, request.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in request.headers.items():
                if name.lower() != self._drops:
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            reply = answer.read()
            headers = {name.title(): value for name, value in answer.getheaders()}
            for name in ("Connection", "Transfer-Encoding"):
                headers.pop(name, None)
            headers.setdefault("Content-Length", str(len(reply)))
            return answer.status, headers, reply
        finally:
            upstream.close()


def _answer(request: BaseHTTPRequestHandler, fault: Fault) -> None:
    if not fault.status:
        request.close_connection = True
        return
    # As Amazon's: what was signed comes back, and with it the token of a session.
    signed = "".join(f"{name}:{value}\n" for name, value in request.headers.items())
    body = (
        f"<Error><Code>{fault.code}</Code><Message>m</Message>"
        f"<Region>eu-north-7</Region><CanonicalRequest>{signed}</CanonicalRequest></Error>"
    ).encode()
    _reply(request, fault.status, {"Content-Length": str(len(body))}, body)


def _reply(
    request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes
) -> None:
    request.send_response_only(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
