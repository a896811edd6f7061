"""Files over http from a server that fails, and through fsspec's own memory."""

import base64
import errno
import hashlib
import io

import aiohttp
import fsspec
import numpy as np
import pytest
from fsspec.config import conf
from loopback import serving

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream import remote
from kaizen_dist.stream.reader import UNKNOWN, Facts
from kaizen_dist.stream.remote import Remote, is_url

CONTENT = np.random.default_rng(0).bytes(2_500_000)
FACTS = Facts(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """The pauses that would have been made."""
    made: list[float] = []
    monkeypatch.setattr(remote, "sleep", made.append)
    return made


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "www").mkdir()
    (tmp_path / "www/x.tar").write_bytes(CONTENT)
    with serving(tmp_path / "www") as running:
        yield running


def fetched(place: Remote, name: str = "x.tar", facts: Facts = FACTS) -> bytes:
    sink = io.BytesIO()
    assert place.fetch(name, sink, facts) == hashlib.sha256(sink.getvalue()).hexdigest()
    return sink.getvalue()


def test_what_is_a_url():
    assert is_url("http://a/b")
    assert is_url("s3://bucket/stream")
    assert not any(is_url(place) for place in ("streams/digits", "/a/b", "C:\\a"))


@pytest.mark.parametrize("facts", [FACTS, UNKNOWN])
def test_a_file_comes_whole_with_one_request(server, facts, pauses):
    assert fetched(Remote(server.url), facts=facts) == CONTENT
    assert (server.asked, pauses) == (["/x.tar"], [])


@pytest.mark.parametrize("fault", [500, 503, 429, "cut", "other"])
def test_what_may_pass_is_tried_again_after_growing_pauses(server, fault, pauses, capsys):
    server.faults["/x.tar"] = [fault] * 3
    assert fetched(Remote(server.url)) == CONTENT
    assert server.times("/x.tar") == 4
    assert pauses == [1.0, 2.0, 4.0]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert all(f"{server.url}/x.tar: " in line and "trying again in" in line for line in said)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (503, "the server answers 503"),
        ("cut", "Error"),
        ("hang up", "ServerDisconnectedError"),
        ("other", "its sha256 is not the one in stream.json"),
    ],
)
def test_what_stays_wrong_is_a_data_error_with_the_url(server, fault, reason, pauses):
    server.faults["/x.tar"] = [fault] * 100
    with pytest.raises(DataError, match=rf"{server.url}/x\.tar cannot be fetched: .*{reason}"):
        fetched(Remote(server.url))
    assert pauses == list(remote.PAUSES)
    # aiohttp by itself asks a second time when a connection ends without an answer.
    assert server.times("/x.tar") == (len(pauses) + 1) * (2 if fault == "hang up" else 1)


@pytest.mark.parametrize(("status", "reason"), [(404, "no such file"), (403, "answers 403")])
def test_what_cannot_pass_is_not_tried_again(server, status, reason, pauses):
    server.faults["/x.tar"] = [status]
    with pytest.raises(DataError, match=reason):
        fetched(Remote(server.url))
    assert (server.times("/x.tar"), pauses) == (1, [])


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_file_of_another_size_is_not_taken(server, size, pauses):
    with pytest.raises(DataError, match="bytes came"):
        fetched(Remote(server.url), facts=Facts(size))
    with pytest.raises(DataError, match="bytes came"):
        fetched(Remote(server.url), facts=Facts(10))


def test_nobody_listens(free_port, pauses):
    with pytest.raises(DataError, match=rf"127\.0\.0\.1:{free_port}/x\.tar cannot be fetched"):
        fetched(Remote(f"http://127.0.0.1:{free_port}"))
    assert len(pauses) == len(remote.PAUSES)


def test_a_server_that_falls_silent_is_given_up_for_another_try(server, monkeypatch):
    monkeypatch.setattr(remote, "_SILENT_SECONDS", 0.2)
    server.faults["/x.tar"] = ["slow"]
    # Another instance than one with the usual patience, which fsspec may have kept.
    assert fetched(Remote(f"{server.url}/")) == CONTENT
    assert server.times("/x.tar") == 2


def test_a_slow_server_is_waited_for(server):
    server.faults["/x.tar"] = ["slow"]
    assert fetched(Remote(server.url)) == CONTENT
    assert server.times("/x.tar") == 1


def test_a_full_disk_is_not_the_servers_fault(server, pauses):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        Remote(server.url).fetch("x.tar", Full(), FACTS)
    assert pauses == []


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("http://anna:word@host/stream", "~/.netrc"),
        ("https://token@host/stream", "~/.netrc"),
        ("http://host/stream?token=word", "FSSPEC_HTTP"),
        ("s3://key:word@bucket/stream", "AWS_SECRET_ACCESS_KEY"),
        ("http://anna:word/=word@host/stream", "not a URL"),
        ("http://", "it names no host"),
        ("http:///stream", "it names no host"),
        ("http://host:port/x", "not a URL"),
        ("http://host:99999/x", "not a URL"),
        ("http://[::1/x", "not a URL"),
        ("http://host]/x", "not a URL"),
        ("http://ho st/x", "control characters and spaces"),
        ("http://host/a\nb", "control characters and spaces"),
        ("http://host/\x1b[31m", "control characters and spaces"),
        ("http://host/\0", "control characters and spaces"),
        ("http://host/\ud800", "control characters and spaces"),
        ("htp://host/x", "no protocol of fsspec is called 'htp'"),
        ("://host/x", "no protocol of fsspec is called ''"),
        ("s3://", "it names no folder"),
        ("memory://", "it names no folder"),
        ("file:///etc", "give the folder's path"),
        ("simplecache::http://host/x", "chained protocols"),
        ("zip://a::http://host/x.zip", "chained protocols"),
        ("ftp://127.0.0.1:1/x", "refused"),
        ("github://a", "github"),
    ],
)
def test_a_url_that_cannot_be_read_is_a_usage_error_that_shows_no_secret(place, words):
    with pytest.raises(UsageError) as error:
        Remote(place)
    assert words in str(error.value)
    secrets = ("anna", "word@", "=word", "word/", "token@")
    assert not any(secret in str(error.value) for secret in secrets)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "place", ["http://host/a", "https://host:80/%20", "HTTP://[::1]:80/x", "memory://a/b"]
)
def test_a_url_is_known_by_itself(place):
    remote = Remote(place)
    assert (str(remote), remote.shown("x.tar")) == (place, f"{place}/x.tar")


def test_credentials_come_from_the_users_files_and_environment(server, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login anna password word\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setitem(conf, "http", {"params": {"sig": "xyz"}, "headers": {"X-Token": "abc"}})
    assert fetched(Remote(f"{server.url}/.")) == CONTENT
    assert server.heads[-1]["Authorization"] == "Basic " + base64.b64encode(b"anna:word").decode()
    assert server.heads[-1]["X-Token"] == "abc"
    assert server.queries[-1] == "sig=xyz"


@pytest.mark.parametrize("fault", ["endless", "bomb"])
@pytest.mark.parametrize("facts", [Facts(1 << 20, "0" * 64), Facts(most=1 << 20)])
def test_an_answer_without_end_is_left_at_the_size_it_may_have(server, fault, facts):
    server.faults["/x.tar"] = [fault] * 10
    sink = io.BytesIO()
    with pytest.raises(DataError, match="more than 1,048,576 bytes came"):
        Remote(server.url).fetch("x.tar", sink, facts)
    assert len(sink.getvalue()) <= 1 << 20
    assert server.heads[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("fault", ["trickle", "silent", "headers"])
def test_what_comes_hardly_or_makes_no_answer_is_given_up(server, fault, monkeypatch):
    monkeypatch.setattr(remote, "_SILENT_SECONDS", 0.3)
    monkeypatch.setattr(remote, "PAUSES", (1.0,))
    server.faults["/x.tar"] = [fault] * 10
    with pytest.raises(DataError, match=r"x\.tar cannot be fetched"):
        fetched(Remote(server.url))
    # Too many headers are no answer at all, which another attempt does not mend.
    assert server.times("/x.tar") == (1 if fault == "headers" else 2)


def test_any_file_system_that_fsspec_knows():
    fsspec.filesystem("memory").pipe("/streams/a/x.tar", CONTENT)
    assert fetched(Remote("memory://streams/a/")) == CONTENT
    with pytest.raises(DataError, match=r"memory://streams/a/y\.tar .*there is no such file"):
        fetched(Remote("memory://streams/a"), "y.tar")


def test_a_folder_on_a_slow_mount(tmp_path):
    (tmp_path / "x.tar").write_bytes(CONTENT)
    assert fetched(Remote(str(tmp_path))) == CONTENT
    assert str(Remote(str(tmp_path))) == str(tmp_path)


def test_a_library_that_is_not_there(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote, "url_to_fs", missing)
    with pytest.raises(UsageError, match=r"Install s3fs .*pip install 'kaizen-dist\[remote\]'"):
        Remote("s3://bucket/stream")


def test_a_silent_server_is_waited_for_a_minute_and_a_large_file_for_ever():
    timeout = remote._http_options()["timeout"]
    assert isinstance(timeout, aiohttp.ClientTimeout)
    assert (timeout.total, timeout.sock_read) == (None, 60.0)
