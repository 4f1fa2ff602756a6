"""The documents agree with the code. `python tests/test_docs.py` writes docs/commands.md anew."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

import pytest
from click.testing import CliRunner
from covidjax_cli.main import COMMANDS, main

from covidjax.config import Config, load_config

ROOT = Path(__file__).parents[1]
COMMANDS_MD = ROOT / "docs" / "commands.md"


def commands_page() -> str:
    parts = ["# Commands\n\nWhat `--help` prints; a test keeps this page equal to it.\n"]
    for command in ("", *COMMANDS):
        words = [command, "--help"] if command else ["--help"]
        text = CliRunner().invoke(main, words, prog_name="covidjax", terminal_width=100).output
        parts.append(f"## covidjax {command}".rstrip() + f"\n\n```\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def test_commands_page_is_what_help_prints():
    assert COMMANDS_MD.read_text() == commands_page(), "run `python tests/test_docs.py`"


def test_readme_shows_every_command_with_an_example():
    readme = (ROOT / "README.md").read_text()
    for command in COMMANDS:
        assert re.search(rf"^covidjax {command}\b", readme, re.MULTILINE), command


def test_every_command_has_an_example_in_its_help():
    for command in COMMANDS:
        assert f"Example: covidjax {command}" in CliRunner().invoke(main, [command, "--help"]).output


def test_every_setting_is_documented_with_its_default():
    page = (ROOT / "docs" / "settings.md").read_text()
    for name, hint in typing.get_type_hints(Config).items():
        fields = dataclasses.fields(hint) if dataclasses.is_dataclass(hint) else ()
        for field in fields:
            default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
            default = default.replace("None", "none")
            assert f"| `{name}.{field.name}` | {default} |" in page, f"{name}.{field.name} = {default}"


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.toml")), ids=lambda file: file.name)
def test_every_config_file_loads(file: Path):
    assert load_config(file) != Config()


def test_dependencies_are_bounded_pinned_and_explained():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        re.split(r"==", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    architecture = (ROOT / "docs" / "architecture.md").read_text()
    for requirement in project["dependencies"]:
        name = re.match(r"[\w-]+", requirement)
        assert name
        assert ">=" in requirement and "<" in requirement, requirement
        assert name[0] in pinned, name[0]
        assert f"`{name[0]}`" in architecture, name[0]


def test_repository_is_for_every_machine():
    """No machine's own paths in what is kept."""
    pattern = re.compile(r"/(?:work|root)/\w|/home/\w")
    for folder in ("covidjax", "cli", "bench", "tests", "docs", "configs"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix in (".py", ".md", ".toml") and file != Path(__file__):
                assert not pattern.search(file.read_text()), file


if __name__ == "__main__":
    COMMANDS_MD.write_text(commands_page())
