"""Archives, hostile ones too, lists of paths, and folders that cannot be read."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from commands import refused, run
from covidjax_cli.main import main
from test_cli_score import newest, paths_below, rows_of, with_one_before
from test_decoders import FORMATS, GRAY, encoded

from covidjax.errors import ImageError
from covidjax.images import archives
from covidjax.images.find import find_images, paths_from_list, walk
from covidjax.images.formats import Limits
from covidjax.lungs.export import output_names
from covidjax.runs import load

ENDINGS = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"]
FILM = encoded(GRAY, "PNG")


def packed(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    kind = path.suffix.removeprefix(".").replace("tgz", "gz").replace("tar", "")
    with tarfile.open(path, f"w:{kind}") as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def names(found: list) -> list[str]:
    return [os.fspath(each) for each in found]


@pytest.mark.parametrize(
    "ending", [ending if ending == ".tgz" else pytest.param(ending, marks=pytest.mark.slow) for ending in ENDINGS]
)
def test_members_score_as_their_files_do(trained: Path, films: Path, tmp_path: Path, monkeypatch, ending: str):
    monkeypatch.setattr(load, "trained_on", lambda _: set())
    files = {path.removeprefix(f"{films}/"): Path(path).read_bytes() for path in paths_below(films)[::3]}
    archive = packed(
        tmp_path / f"films{ending}",
        files | {"notes.txt": b"no film", "IM0001": FORMATS["raw.dcm"](), "__MACOSX/x.png": FILM, "bad.png": b"no film"},
    )
    words = ("--checkpoint", trained, "--runtime", "jax")
    assert run("score", films, *words, "--output", tmp_path / "files.csv").exit_code == 0
    result = run("score", archive, *words, "--output", tmp_path / "members.csv", "--json")
    assert result.exit_code == 0, result.output
    assert "Skipped 1 files (not images)." in result.stderr
    assert json.loads(result.stdout)["metrics"]["macro"]["support"] == 10  # the classes of the folders inside
    expected = {row["path"].removeprefix(f"{films}/"): row for row in rows_of(tmp_path / "files.csv")}
    rows = rows_of(tmp_path / "members.csv")
    assert [row["path"] for row in rows] == [f"{archive}/{name}" for name in [*files, "IM0001", "bad.png"]]
    for row in rows[:-2]:
        same = expected[row["path"].removeprefix(f"{archive}/")]
        assert float(row["confidence"]) == pytest.approx(float(same["confidence"]), abs=1e-5)
    assert [row["status"] for row in rows[-2:]] == ["ok", "error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([archive.name, "files.csv", "members.csv"])


@pytest.mark.parametrize("ending", ENDINGS)
def test_names_lead_nowhere(tmp_path: Path, ending: str):
    hostile = ["../../up.png", "/etc/root.png", "a/../../b/../../../c.png", "./here.png"]
    archive = packed(tmp_path / f"x{ending}", dict.fromkeys(hostile, FILM))
    found = find_images([tmp_path])
    assert names(found.paths) == [f"{archive}/{name}" for name in ("up.png", "etc/root.png", "a/b/c.png", "here.png")]
    assert all(member.read(Limits()) == FILM for member in archives.members(str(archive))[0])
    written = output_names(found.paths, found.roots)
    assert all((tmp_path / "out" / name).resolve().is_relative_to(tmp_path / "out") for name in written)


def test_links_devices_and_sparse_files_in_a_tar_are_skipped(tmp_path: Path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("film.png")
        info.size = len(FILM)
        archive.addfile(info, io.BytesIO(FILM))
    images, skipped = archives.members(str(tmp_path / "x.tar"))
    assert (names(images), skipped) == ([f"{tmp_path}/x.tar/film.png"], 4)


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
def test_bomb_in_an_archive_is_not_inflated(tmp_path: Path, ending: str):
    archive = packed(tmp_path / f"x{ending}", {"bomb.png": bytes(30_000_000), "film.png": FILM})
    bomb, film = archives.members(str(archive))[0]
    with pytest.raises(ImageError, match="longer than 10 MB, which no X-ray is"):
        bomb.read(Limits(megabytes=10))
    assert film.read(Limits(megabytes=10)) == FILM


def test_zip_that_lies_about_sizes_is_read_no_further_than_the_limit(tmp_path: Path):
    archive = packed(tmp_path / "x.zip", {"bomb.png": bytes(3_000_000)})
    data = archive.read_bytes().replace((3_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    archive.write_bytes(data)
    (bomb,) = archives.members(str(archive))[0]
    with pytest.raises(ImageError):
        bomb.read(Limits(megabytes=1))


@pytest.mark.parametrize("ending", ENDINGS)
def test_archive_that_is_cut_off_says_so(tmp_path: Path, ending: str):
    noise = np.random.default_rng(0)
    files = {f"{number}.png": noise.bytes(5000) for number in range(10)}
    archive = packed(tmp_path / f"x{ending}", files)
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2])
    found = find_images([archive])
    assert len(found.paths) < 11
    last = found.paths[-1]
    assert isinstance(last, archives.LoadedMember)
    assert os.fspath(last) == str(archive)
    assert last.error.startswith("damaged archive: ")


def test_mutated_archives_give_rows_and_reasons_and_nothing_else(tmp_path: Path):
    from test_decoders import mutated

    random = np.random.default_rng(1)
    files = {f"{number}.png": FILM for number in range(3)} | {"notes": b"no film"}
    originals = {ending: packed(tmp_path / f"x{ending}", files).read_bytes() for ending in ENDINGS}
    for turn in range(300):
        ending = ENDINGS[turn % len(ENDINGS)]
        path = tmp_path / f"m{turn}{ending}"
        path.write_bytes(mutated(originals[ending], random))
        found = find_images([path, tmp_path / "x.zip"]).paths
        whole = [source for source in found if os.fspath(source).startswith(f"{tmp_path}/x.zip/")]
        assert [source.load(Limits()).data for source in whole if isinstance(source, archives.Member)] == [FILM] * 3
        for source in found:
            assert isinstance(source, archives.Member | archives.LoadedMember | Path)
            if isinstance(source, archives.Member):
                loaded = source.load(Limits())
                assert (loaded.data is None) == bool(loaded.error)
        path.unlink()


def test_list_on_standard_input(trained: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted = [*paths_below(films)[:3], str(tmp_path / "gone.png")]
    assert paths_from_list(b"a b\nc\n\n") == [Path("a b"), Path("c")]
    assert paths_from_list(b"a\nb\0caf\xe9\0") == [Path("a\nb"), Path(os.fsdecode(b"caf\xe9"))]
    words = ["score", "-", "--checkpoint", str(trained), "--json", "--runtime", "jax"]
    runner = CliRunner(catch_exceptions=False)
    result = runner.invoke(main, words, input="\n".join(wanted))
    assert result.exit_code == 0, result.output
    assert [row["path"] for row in json.loads(result.stdout)["rows"]] == wanted
    assert runner.invoke(main, words, input="").exit_code == 2


def test_loops_of_links_and_folders_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "film.png").write_bytes(FILM)
    (tmp_path / "a" / "b" / "loop").symlink_to(tmp_path / "a")
    assert [path.name for path in walk(tmp_path).images] == ["film.png"]
    listing = os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_images([tmp_path])
    assert names(found.paths) == [f"{tmp_path}/a/film.png", f"{tmp_path}/a/b"]
    assert isinstance(found.paths[1], archives.LoadedMember)
    assert found.paths[1].error == "a folder that cannot be read: Permission denied"


class Payload:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.slow
def test_pickles_in_a_run_do_nothing(trained: Path, films: Path, tmp_path: Path):
    import pickle
    import shutil

    mark, run_folder = tmp_path / "mark", tmp_path / "run"
    payload = pickle.dumps(Payload(mark))
    shutil.copytree(trained, run_folder)
    film = paths_below(films)[0]
    words = ("score", film, "--checkpoint", run_folder, "--runtime", "jax")
    last = newest(with_one_before(run_folder))
    for name in ("weights.pkl", "checkpoint", "weights/payload.pickle", "state.npy"):
        (last / name).write_bytes(payload)
    for file in ("payload.pkl", "seen.txt", "metrics.jsonl"):
        (run_folder / file).write_bytes(payload)
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "Damaged" in result.stderr
    for file in (run_folder / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(payload)
    assert "is damaged" in refused(*words, code=1)
    for step in (run_folder / "checkpoints").glob("*/*"):
        (step / "sha256.json").unlink()  # not even by its digests
    assert "is damaged" in refused(*words, code=1)
    (tmp_path / "film.png").write_bytes(payload)
    assert "No image could be read" in refused("score", tmp_path / "film.png", "--checkpoint", trained, code=1)
    assert not mark.exists()
    pickle.loads(payload)
    assert mark.exists()  # it would have told


def test_code_unpickles_nothing():
    root = Path(archives.__file__).parents[2]
    words = ("import pickle", "allow_pickle=True", "torch.load", "joblib", "shelve", "marshal", " eval(", " exec(")
    for folder in ("covidjax", "cli"):
        for file in (root / folder).rglob("*.py"):
            assert not any(word in file.read_text() for word in words), file


@pytest.mark.parametrize(
    "text",
    ["x = " + "[" * 16_000, "x = " + "{a=" * 5_000, "a." * 8_000 + "b = 1", "#" * 2_000_000],
    ids=["lists", "tables", "key", "length"],
)
def test_toml_bombs_are_one_sentence(trained: Path, tmp_path: Path, films: Path, text: str):
    (tmp_path / "config.toml").write_text(text)
    for words in (
        ("train", "--config", tmp_path / "config.toml", "--run", tmp_path / "run"),
        ("score", films, "--checkpoint", tmp_path),
    ):
        assert str(tmp_path / "config.toml") in refused(*words, code=2)
    assert sys.getrecursionlimit() < 100_000
