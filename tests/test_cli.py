from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import refused, run
from covidjax_cli.main import COMMANDS

ROOT = Path(__file__).parents[1]


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())


def test_help_imports_neither_jax_nor_anything_heavy():
    help_of_all = "\n".join(
        f"try: main(['{command}', '--help'])\nexcept SystemExit: pass"
        if command
        else "try: main(['--help'])\nexcept SystemExit: pass"
        for command in ("", *COMMANDS)
    )
    loaded = modules_after(f"from covidjax_cli.main import main\n{help_of_all}")
    assert not loaded & {"jax", "flax", "numpy", "tensorflow", "tensorflow_datasets", "grain", "matplotlib", "rich", "PIL"}
    assert "covidjax_cli.score" in loaded


def test_importing_the_library_imports_no_jax():
    assert not modules_after("import covidjax") & {"jax", "numpy"}


@pytest.mark.slow
def test_no_command_imports_tensorflow(films: Path, tmp_path: Path):
    """Every command in one process, where a TensorFlow and a torch are there to be found but break when imported."""
    for package in ("tensorflow", "torch"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"raise AssertionError('imported {package}')")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from covidjax_cli.main import main
def command(*words):
    try: main(list(words))
    except SystemExit as end: assert not end.code, (words, end.code)
command("prepare", {str(films)!r}, "--out", "data", "--image-size", "32", "--folds", "3")
command("train", "--data", "data", "--epochs", "1", "--run", "runs/a", "--set", "train.batch_size=4")
command("train", "--data", "data", "--epochs", "1", "--run", "runs/b", "--set", "train.cache=stream")
command("evaluate", "runs/a")
command("score", {str(films)!r}, "--output", "s.parquet")
command("doctor")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_command_and_option_are_usage_errors():
    assert run("tain").exit_code == 2
    assert run("train", "--epoch", "3", "--nonsense").exit_code == 2
    assert run("train", "--model", "resnet").exit_code == 2
    assert run("score").exit_code == 2


def test_version():
    import covidjax

    assert run("--version").stdout == f"covidjax, version {covidjax.__version__}\n"


def test_doctor_finds_a_working_installation(monkeypatch: pytest.MonkeyPatch):
    from covidjax_cli import installation

    result = run("doctor", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {"python", "jax", "grain", "device", "cache"} <= {entry["what"] for entry in found}
    assert all(entry["state"] != "wrong" for entry in found)
    assert "what" in run("doctor").stdout
    monkeypatch.setattr(installation, "version_of", lambda package: None if package == "optax" else "1.0")
    result = run("doctor")
    assert "pip install --force-reinstall covidjax" in result.stdout
    assert refused("doctor", code=1).startswith("1 of ")
