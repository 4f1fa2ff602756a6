"""Scoring a folder in which some files are bad, beside the same folder without them, in turns.

One file in twenty is cut off, text, empty, or a header that claims a bomb. What is asked for: the pace of the good films is
that of the folder without bad ones within 5 %, and the error rows are exactly those of the bad files.
"""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from pathlib import Path

from bench import data
from bench.harness import Options
from bench.machine import COVIDJAX, say
from bench.score import Command
from bench.tables import Result, Row, Spread, Table, ratio

FILES, SHARE, ROUNDS = 20_000, 20, 3
GOOD, MIXED = "without bad files", "5 % bad files"


def spoil(films: Path, out: Path) -> list[str]:
    """A folder of links to films, every twentieth of which gives way to a bad file; returns the names of these."""
    bad = []
    out.mkdir()
    for index, film in enumerate(sorted(films.iterdir())):
        if index % SHARE:
            os.link(film, out / film.name)
            continue
        whole = film.read_bytes()
        header = whole[:16] + (60_000).to_bytes(4, "big") * 2 + whole[24:]  # the size in a PNG's header
        kinds = (whole[: len(whole) // 2], b"no film", b"", header)
        (out / film.name).write_bytes(kinds[index // SHARE % len(kinds)])
        bad.append(film.name)
    return bad


def measure(options: Options) -> Result:
    """images/s of good films, whole command."""
    size = 32 if options.quick else 224
    files, rounds = (40, 1) if options.quick else (FILES, ROUNDS)
    folder, run = data.films("small", files, min(files, 60)), data.run(size)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        mixed, good, out = Path(scratch, "mixed"), Path(scratch, "good"), Path(scratch, "rows.csv")
        bad = spoil(folder, mixed)
        good.mkdir()
        for film in mixed.iterdir():
            if film.name not in bad:
                os.link(film, good / film.name)
        words = [*COVIDJAX, "score", "--checkpoint", str(run), "--output", str(out), "--json"]
        commands = [Command(name, [*words, str(where)]) for name, where in ((GOOD, good), (MIXED, mixed))]
        wrong = 0
        for turn in range(rounds):
            for command in commands:
                command.run(files - len(bad))
                with out.open(newline="") as file:
                    errors = [Path(row["path"]).name for row in csv.DictReader(file) if row["status"] == "error"]
                wrong += len(set(errors) ^ set(bad if command.name == MIXED else ()))
            say(f"  turn {turn + 1} of {rounds}")
        shutil.rmtree(mixed)
    rows = [
        Row(each.name, None, each.missing)
        if each.missing
        else Row(each.name, Spread.of(each.process), samples=each.process)
        for each in commands
    ]
    figures = {"score_wrong_error_rows": float(wrong)}
    if not any(each.missing for each in commands):
        figures["score_with_bad_files"] = ratio(commands[1].process, commands[0].process).median
    note = f"{files} files, {len(bad)} bad or left out; pace of the good ones."
    return Result([Table("Scoring with bad files", "images/s", rows, note, MIXED)], figures)


if __name__ == "__main__":
    from bench.harness import command

    command("faults", measure, __doc__)()
