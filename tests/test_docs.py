"""The documents agree with the code. `python tests/test_docs.py` writes docs/commands.md and docs/settings.md anew."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from covidjax_cli.main import COMMANDS, main

from covidjax import config
from covidjax.config import Config, load_config

ROOT = Path(__file__).parents[1]
COMMANDS_MD = ROOT / "docs" / "commands.md"
SETTINGS_MD = ROOT / "docs" / "settings.md"
SETTINGS_INTRODUCTION = """# Settings of a training run

A TOML file given with `--config` holds what differs from these defaults; `--set section.key=value` changes one. A key
that is not in this table is an error. The options `--model`, `--init`, `--data`, `--epochs`, `--test-fold`, `--val-fold`,
`--cv` and `--seed` are short for the settings they name and win over both. `covidjax/config.py` is where this page comes
from; a test keeps them equal.
"""


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


def descriptions() -> dict[tuple[str, str], str]:
    """What stands below each field of the dataclasses of covidjax.config, by class and field."""
    tree = ast.parse(Path(config.__file__).read_text())
    found = {}
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, text in itertools.pairwise(kind.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                words = " ".join(str(text.value.value).split())
                found[kind.name, ast.unparse(field.target)] = words.replace("``", "`")
    return found


def values(hint: Any) -> str:
    """The values that a setting takes."""
    if typing.get_origin(hint) is typing.Annotated:
        return str(hint.__metadata__[0])
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{value}`" for value in hint.__args__)
    return {
        bool: "`true`, `false`",
        str: "text",
        tuple[str, ...]: "a list of texts",
        tuple[float, ...]: "a list of numbers",
        int | None: "at least 0, or `none`",
    }[hint]


def settings_page() -> str:
    lines = [SETTINGS_INTRODUCTION, "| setting | default | values | meaning |", "| --- | --- | --- | --- |"]
    told = descriptions()
    for section, kind in typing.get_type_hints(Config, include_extras=True).items():
        if not dataclasses.is_dataclass(kind):
            lines.append(f"| `{section}` | {getattr(Config(), section)} | {values(kind)} | {told['Config', section]} |")
            continue
        hints = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            default = str(field.default).lower() if isinstance(field.default, bool | None) else str(field.default)
            name, text = f"`{section}.{field.name}`", told[str(getattr(kind, "__name__", "")), field.name]
            lines.append(f"| {name} | {default} | {values(hints[field.name])} | {text} |")
    return "\n".join(lines) + "\n"


def test_settings_page_is_what_the_code_says():
    assert SETTINGS_MD.read_text() == settings_page(), "run `python tests/test_docs.py`"


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


def test_links_between_pages_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "covidjax" / "weights").glob("*.md")]
    assert len(pages) > 10
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page}: {link}"


def test_repository_is_for_every_machine():
    """No machine's own paths in what is kept."""
    pattern = re.compile(r"/(?:work|root)/\w|/home/\w")
    for folder in ("covidjax", "cli", "bench", "tests", "docs", "configs"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix in (".py", ".md", ".toml") and file != Path(__file__):
                assert not pattern.search(file.read_text()), file


if __name__ == "__main__":
    COMMANDS_MD.write_text(commands_page())
    SETTINGS_MD.write_text(settings_page())
