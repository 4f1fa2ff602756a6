"""The real commands: in this process where it is quick, in one of their own where it must be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result
from covidjax_cli.main import main

TINY = ("--set", "train.batch_size=4")
"""Settings for a dataset of thirty images."""

COMMAND = [sys.executable, "-c", "from covidjax_cli.main import main; main()"]


def run(*words: object) -> Result:
    """The command line in this process; an exception that no user should see is raised."""
    return CliRunner(catch_exceptions=False).invoke(main, [str(word) for word in words])


def refused(*words: object, code: int) -> str:
    """Run a command that must fail with this exit code and one sentence, which is returned."""
    result = run(*words)
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    assert lines[0].endswith((".", "?"))
    return lines[0].removeprefix("Error: ")


def start(*words: object, cwd: Path) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [*COMMAND, *map(str, words)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
