"""Who may come to a bucket, by which address, and what they are told who may not."""

import pickle
import sys
from pathlib import Path

import pytest

from infra.s3_store import S3Store
from infra.store import open_store
from schemas.errors import ConfigError, NotFound, StoreError
from schemas.store_config import StoreOptions
from tests.s3server import S3Server

pytestmark = pytest.mark.s3


class TestAddress:
    @pytest.mark.parametrize("prefix", ["ein Präfix/日本/a%20b+c", "a/b/"])
    def test_url__keeps_its_prefix_to_itself(self, server: S3Server, prefix: str) -> None:
        root = server.store().url
        inside = open_store(f"{root}/{prefix}", StoreOptions(endpoint=server.endpoint))
        above = open_store(root, StoreOptions(endpoint=server.endpoint))
        inside.create("k/ü", b"x")
        assert list(inside.keys("")) == ["k/ü"]
        assert list(inside.keys("k/")) == ["k/ü"]
        assert list(above.keys("")) == [f"{prefix.rstrip('/')}/k/ü"]
        assert inside.url == f"{root}/{prefix.rstrip('/')}"

    def test_url__of_a_whole_bucket(self, server: S3Server) -> None:
        store = server.store("")
        assert store.url == f"s3://{server.bucket}"
        store.create("whole/bucket", b"x")
        assert list(store.keys("whole/")) == ["whole/bucket"]
        assert store.get("whole/bucket") == b"x"

    @pytest.mark.parametrize(
        "url", ["s3://", "s3:///a", "s3://bu cket/a", "s3://bucket//a", "s3://bucket/../a"]
    )
    def test_url__that_means_nothing(self, server: S3Server, url: str) -> None:
        with pytest.raises(ConfigError, match=r"expected|no part of the prefix"):
            open_store(url)

    @pytest.mark.parametrize("url", ["s3://key:hunter2@bucket/a", "s3://bucket?secret=hunter2"])
    def test_url__a_secret_in_it_is_refused_and_not_repeated(
        self, server: S3Server, url: str
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            open_store(url)
        assert "hunter2" not in repr(caught.value)

    @pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
    def test_endpoint__from_the_environment(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        monkeypatch.setenv(variable, server.endpoint)
        store = open_store(server.store().url)
        store.create("k", b"x")
        assert store.get("k") == b"x"

    @pytest.mark.parametrize(
        ("endpoint", "message"),
        [
            ("localhost:9000", r"http\(s\)://HOST:PORT is expected"),
            ("ftp://host", r"http\(s\)://HOST:PORT is expected"),
            ("http://key:hunter2@host:1", "credentials do not belong into it"),
            ("http://:hunter2@host:1", "credentials do not belong into it"),
            ("http://host:1/?key=hunter2", "credentials do not belong into it"),
        ],
    )
    def test_endpoint__that_is_none(self, server: S3Server, endpoint: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            open_store("s3://bucket/a", StoreOptions(endpoint=endpoint))
        assert "hunter2" not in repr(caught.value)

    def test_keys__an_object_of_somebody_else_that_is_no_key(self, server: S3Server) -> None:
        store = server.store("theirs")
        server.client().put_object(Bucket=server.bucket, Key="theirs/a//b", Body=b"")
        with pytest.raises(StoreError, match=r"an object of somebody else .* give the cache its"):
            list(store.keys(""))

    def test_open_store__without_its_packages(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "obstore", None)
        monkeypatch.delitem(sys.modules, "infra.s3_store")
        with pytest.raises(ConfigError, match=r"needs .*obstore.* pip install 'teachonce\[s3\]'"):
            open_store("s3://bucket/a")


class TestCredentials:
    def test_bucket__that_does_not_exist(self, server: S3Server) -> None:
        store = S3Store("s3://no-such-bucket-here/a", StoreOptions(endpoint=server.endpoint))
        for use in (
            lambda: store.get("k"),
            lambda: store.create("k", b""),
            lambda: list(store.keys("")),
        ):
            with pytest.raises(StoreError, match="no bucket no-such-bucket-here; create it") as hit:
                use()
            assert not isinstance(hit.value, NotFound)

    @pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
    def test_credentials__that_are_wrong(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        if not server.checks_signatures:
            pytest.skip("moto lets everybody in")
        monkeypatch.setenv(variable, "something-else")
        store = server.store()
        with pytest.raises(StoreError, match=f"403 .* check {variable}"):
            store.create("k", b"")
        with pytest.raises(StoreError, match="403"):
            store.size("k")

    def test_credentials__there_are_none(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(ConfigError, match=r"no credentials .* store.profile, or store.anonym"):
            server.store()

    def test_credentials__half_of_them(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY"):
            server.store()

    def test_profile__comes_before_the_environment(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        profile = (
            f"[profile lab]\naws_access_key_id = {server.key}\nendpoint_url = {server.endpoint}\n"
            f"aws_secret_access_key = {server.secret}\nregion = eu-north-7\n"
        )
        (tmp_path / "config").write_text(profile)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something-else")
        store = server.store(profile="lab", endpoint=None)
        store.create("k", b"x")
        assert store.get("k") == b"x"
        with pytest.raises(ConfigError, match=r"profile \(other\) .* store.profile"):
            server.store(profile="other")

    def test_anonymous__reads_what_is_public(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.store("public").create("k", b"for all")
        server.store("private").create("k", b"not for all")
        server.open_to_all("public/*")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")  # half of them do no harm here
        assert server.store("public", anonymous=True).get("k") == b"for all"
        if server.checks_signatures:
            with pytest.raises(StoreError, match="access was denied"):
                server.store("private", anonymous=True).get("k")

    def test_pickle__takes_no_secret_along(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = server.store()
        store.create("k", b"x")
        pickled = pickle.dumps(store)
        assert server.secret.encode() not in pickled
        assert server.key.encode() not in pickled
        again = pickle.loads(pickled)
        assert (again.url, again.get("k")) == (store.url, b"x")
        assert server.secret not in f"{store!r} {vars(store)} {store.url}"
