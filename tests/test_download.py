"""Published collections from a server on the loopback: whole, cut off, changed, missing, too large; licences and steps."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import stat
import sys
import threading
import types
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused, run

from covidjax.data import download
from covidjax.data.download import Published
from covidjax.errors import UserError


def archive(*extra: tuple[str, bytes]) -> bytes:
    """A ZIP archive of a folder of two large files, and whatever else."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as zipped:
        for number in range(2):
            zipped.writestr(f"set-1/images/{number}.bin", np.random.default_rng(number).bytes(300_000))
        zipped.writestr("set-1/__MACOSX/x", b"")
        for name, content in extra:
            zipped.writestr(name, content)
        link = zipfile.ZipInfo("set-1/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(link, "/etc/passwd")
    return made.getvalue()


class Served:
    """What the server has, and what it was asked for."""

    def __init__(self) -> None:
        self.content, self.tag = archive(), '"one"'
        self.cuts: list[int] = []
        """Bytes after which the next connections break off."""
        self.ranges: list[str | None] = []
        self.status, self.knows_ranges, self.says_length = 200, True, True
        self.busy = 0
        """Connections that are refused for their number."""
        self.ranges_begin_at: int | None = None
        """Where parts of the file begin, whatever was asked for."""
        self.address = ""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            if state.status != 200:
                self.send_error(state.status)
                return
            if state.busy:
                state.busy -= 1
                self.send_error(429)
                return
            start = 0
            if asked and state.knows_ranges and self.headers.get("If-Range") == state.tag:
                start = int(re.findall(r"\d+", asked)[0])
            partial = bool(start)
            if partial and state.ranges_begin_at is not None:
                start = state.ranges_begin_at
            self.send_response(206 if partial else 200)
            if partial:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            if state.says_length:
                self.send_header("Content-Length", str(len(state.content) - start))
            self.send_header("ETag", state.tag)
            self.end_headers()
            body = state.content[start:]
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_port}/set.zip"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def entry(served: Served, **fields: Any) -> Published:
    return Published("set", "A set", "CC0", "Nobody 2020", address=served.address, **{"inside": "set-1", **fields})


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


WHOLE = [".covidjax-download.json", "images/0.bin", "images/1.bin"]


def test_a_collection_is_fetched_checked_and_unpacked(served: Served, tmp_path: Path):
    digest, told = hashlib.sha256(served.content).hexdigest(), []
    known = entry(served, sha256=digest, bytes=len(served.content))
    receipt = download.download(known, tmp_path / "to", progress=lambda *done: told.append(done))
    assert names(tmp_path / "to") == WHOLE
    assert (tmp_path / "to" / "images" / "1.bin").read_bytes() == np.random.default_rng(1).bytes(300_000)
    assert (receipt["bytes"], receipt["sha256"], receipt["known_before"]) == (len(served.content), digest, True)
    assert told[-1] == (len(served.content), len(served.content))
    assert json.loads((tmp_path / "to" / WHOLE[0]).read_text()) == receipt
    assert download.download(known, tmp_path / "to") == receipt
    assert len(served.ranges) == 1  # what is there is not fetched again


def test_a_digest_that_nobody_knew_is_recorded_and_said_to_be_new(served: Served, tmp_path: Path):
    receipt = download.download(entry(served), tmp_path)
    assert (receipt["sha256"], receipt["known_before"]) == (hashlib.sha256(served.content).hexdigest(), False)


def test_a_download_that_breaks_off_goes_on_where_it_stopped(served: Served, tmp_path: Path):
    served.cuts = [100_000, 0, 250_000]
    receipt = download.download(entry(served), tmp_path)
    assert receipt["sha256"] == hashlib.sha256(served.content).hexdigest()
    assert served.ranges == [None, "bytes=100000-", "bytes=100000-", "bytes=350000-"]
    assert names(tmp_path) == WHOLE


def test_the_same_command_goes_on_later(served: Served, tmp_path: Path):
    served.cuts = [100_000, *[0] * download.ATTEMPTS]
    with pytest.raises(UserError, match=r"the last time after 100,000 bytes; give the same command again"):
        download.download(entry(served), tmp_path)
    served.ranges.clear()
    download.download(entry(served), tmp_path)
    assert served.ranges == ["bytes=100000-"]
    assert names(tmp_path) == WHOLE


def test_without_a_length_the_registry_says_when_it_is_whole(served: Served, tmp_path: Path):
    served.says_length, served.cuts = False, [100_000, 250_000]
    known, told = entry(served, bytes=len(served.content)), []
    receipt = download.download(known, tmp_path, progress=lambda *done: told.append(done))
    assert receipt["sha256"] == hashlib.sha256(served.content).hexdigest()
    assert served.ranges == [None, "bytes=100000-", "bytes=350000-"]
    assert told[-1] == (len(served.content), len(served.content))


def test_a_part_that_begins_elsewhere_is_not_appended(served: Served, tmp_path: Path):
    served.cuts, served.ranges_begin_at = [100_000], 50_000
    receipt = download.download(entry(served), tmp_path)
    assert receipt["sha256"] == hashlib.sha256(served.content).hexdigest()
    assert served.ranges == [None, "bytes=100000-", None]


def test_a_busy_server_is_asked_again(served: Served, tmp_path: Path):
    served.busy = 2
    download.download(entry(served), tmp_path)
    assert len(served.ranges) == 3


@pytest.mark.parametrize("change", ["another file", "no ranges"])
def test_what_cannot_be_gone_on_with_is_fetched_anew(change: str, served: Served, tmp_path: Path):
    served.cuts = [100_000, *[0] * download.ATTEMPTS]
    with pytest.raises(UserError):
        download.download(entry(served), tmp_path)
    if change == "another file":
        served.content, served.tag = archive(("set-1/new.txt", b"new")), '"two"'
    else:
        served.knows_ranges = False
    receipt = download.download(entry(served), tmp_path)
    assert receipt["sha256"] == hashlib.sha256(served.content).hexdigest()


@pytest.mark.parametrize("length", [True, False])
def test_other_bytes_than_the_registry_says_are_refused(length: bool, served: Served, tmp_path: Path):
    served.says_length = length
    with pytest.raises(UserError, match=r"has another SHA-256 than 0{64}"):
        download.download(entry(served, sha256="0" * 64), tmp_path / "a")
    with pytest.raises(UserError, match=rf"has {len(served.content):,} bytes and not 7:"):
        download.download(entry(served, bytes=7), tmp_path / "b")
    assert names(tmp_path) == []


@pytest.mark.parametrize(("status", "part"), [(404, "cannot be had (404 "), (403, "(403 "), (503, "broke off again")])
def test_a_server_that_gives_nothing_is_said(status: int, part: str, served: Served, tmp_path: Path):
    served.status = status
    with pytest.raises(UserError) as caught:
        download.download(entry(served), tmp_path)
    assert part in str(caught.value)
    assert served.address in str(caught.value)


def test_no_network_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with pytest.raises(UserError, match="see to the network"):
        download.download(Published("set", "", "", "", address="http://no-such-host.invalid/x.zip"), tmp_path)


def test_too_little_space_is_said_before_anything_comes(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="free some space or name another folder"):
        download.download(entry(served), tmp_path)
    assert names(tmp_path) == []


def test_a_full_disk_is_said_and_the_download_goes_on_after_that(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"No space left on device\); free some space"):
        download.download(entry(served), tmp_path, progress=full)
    assert download.download(entry(served), tmp_path)["bytes"] == len(served.content)
    assert served.ranges[-1] is not None


def test_members_that_would_lie_elsewhere_and_links_are_left_out(served: Served, tmp_path: Path):
    served.content = archive(("set-1/../../outside.txt", b""), ("set-1/a/../b.txt", b""), ("other/x.txt", b""))
    receipt = download.download(entry(served), tmp_path / "deep" / "to")
    assert receipt["refused"] == 3
    assert names(tmp_path) == [f"deep/to/{name}" for name in WHOLE]
    receipt = download.download(entry(served, inside="moved"), tmp_path / "whole")
    assert names(tmp_path / "whole") == [WHOLE[0], "other/x.txt", "set-1/images/0.bin", "set-1/images/1.bin"]


@pytest.mark.parametrize("damage", [slice(0, 5000), slice(0, 300_050), slice(400_000, 400_010)])
def test_a_damaged_archive_is_said_and_removed(damage: slice, served: Served, tmp_path: Path):
    """Its end is missing, its beginning, or a few bytes of a member."""
    whole = served.content
    served.content = (
        whole[damage] if damage.start == 0 and damage.stop == 5000 else whole[: damage.start] + whole[damage.stop :]
    )
    with pytest.raises(UserError, match="no whole ZIP archive"):
        download.download(entry(served), tmp_path)
    served.content, served.tag = whole, '"two"'
    assert names(tmp_path) == []
    assert download.download(entry(served), tmp_path)["bytes"] == len(whole)


def test_a_folder_that_holds_something_else_is_left_alone(served: Served, tmp_path: Path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="holds something else"):
        download.download(entry(served), tmp_path)
    assert served.ranges == []


# Kaggle


def test_a_set_on_kaggle_is_copied_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = tmp_path / "cache"
    (cache / "inner" / "COVID").mkdir(parents=True)
    (cache / "inner" / "COVID" / "a.png").write_bytes(b"abc")
    asked = []
    fake = types.SimpleNamespace(dataset_download=lambda handle: asked.append(handle) or str(cache))
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    collection = Published("r", "R", "CC0", "", kaggle="owner/set/versions/5", inside="inner")
    receipt = download.download(collection, tmp_path / "to")
    assert (asked, receipt["files"], receipt["bytes"]) == (["owner/set/versions/5"], 1, 3)
    assert names(tmp_path / "to") == [WHOLE[0], "COVID/a.png"]


def test_a_missing_client_of_kaggle_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    message = refused("download", "radiography", "--to", tmp_path / "to", "--accept-licence", code=1)
    assert "pip install 'covidjax[kaggle]'" in message


# The command and the registry


def test_the_registry_is_whole_and_invents_no_digest():
    collections = download.published()
    assert {"ieee8023", "ozturk", "radiography", "kermany", "montgomery", "shenzhen"} <= collections.keys()
    for each in collections.values():
        assert each.title and each.licence and each.citation
        assert bool(each.address) + bool(each.kaggle) + bool(each.steps) == 1
        assert each.sha256 == "" or re.fullmatch("[0-9a-f]{64}", each.sha256)
        if "github.com" in each.address:
            assert re.search(r"/archive/[0-9a-f]{40}\.zip$", each.address)


def test_the_list_and_the_steps_of_gated_sets_are_printed(tmp_path: Path):
    listed = run("download", "--list")
    assert listed.exit_code == 0
    for name in ("ieee8023", "kermany", "chexpert", "CC BY 4.0"):
        assert name in listed.stdout
    steps = run("download", "chexpert", "--to", tmp_path / "to")
    assert steps.exit_code == 0
    assert "1. Open https://" in steps.stdout
    assert not (tmp_path / "to").exists()


def test_a_licence_that_nobody_can_be_asked_for_is_not_accepted(tmp_path: Path):
    result = run("download", "kermany", "--to", tmp_path / "to")
    assert "Licence: CC BY 4.0." in result.stderr
    assert "add --accept-licence" in refused("download", "kermany", "--to", tmp_path / "to", code=2)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1)])
def test_the_licence_is_asked_for(answer: str, code: int, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from click.testing import CliRunner
    from covidjax_cli.main import main

    monkeypatch.setattr(download, "published", lambda: {"set": entry(served)})
    monkeypatch.setattr("covidjax_cli.download._can_ask", lambda: True)
    result = CliRunner().invoke(main, ["download", "set", "--to", str(tmp_path / "to")], input=answer)
    assert result.exit_code == code, result.output
    if code == 0:
        digest = hashlib.sha256(served.content).hexdigest()
        assert f"SHA-256 {digest} (recorded here for the first time" in result.stderr
        assert "Left out 1 members" in result.stderr
    else:
        assert "was not accepted" in result.stderr and served.ranges == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "No collection is named"),
        (("atlantis", "--to", "x"), "There is no collection 'atlantis'; choose one of ieee8023"),
        (("kermany",), "No folder is named"),
    ],
)
def test_wrong_words_are_said(words: tuple[str, ...], part: str):
    assert part in refused("download", *words, code=2)
