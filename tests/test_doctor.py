"""The doctor: what it says of cards, and that it finds nothing wrong here."""

import jax
import pytest
from covidjax_cli import installation
from covidjax_cli.installation import check_card, examine

V100, T4, H100 = ("Tesla V100-SXM2-16GB", 7.0), ("Tesla T4", 7.5), ("NVIDIA H100", 9.0)


@pytest.mark.parametrize(
    ("card", "usable", "cudnn", "cuda13", "part", "remedy"),
    [
        (V100, True, "9.11.0.98", None, "cuDNN 9.11.0.98 needs", "pip install nvidia-cudnn-cu12==9.10.2.21"),
        (V100, False, "9.11.0.98", None, "this card has 7.0", "pip install nvidia-cudnn-cu12==9.10.2.21"),
        (V100, True, "10.0", None, "cuDNN 10.0 needs", "pip install nvidia-cudnn-cu12==9.10.2.21"),
        (
            *(V100, False, None, "0.10.2", "CUDA 13 needs compute capability 7.5; this card has 7.0"),
            "pip uninstall jax-cuda13-plugin jax-cuda13-pjrt && pip install 'covidjax[v100]'",
        ),
        (V100, False, None, None, "jax was installed without CUDA", "pip install 'covidjax[v100]'"),
        (T4, False, None, None, "jax was installed without CUDA", "pip install 'covidjax[cuda12]'"),
        (H100, False, None, None, "jax was installed without CUDA", "pip install 'covidjax[cuda12]'"),
    ],
)
def test_card_that_jax_cannot_use_has_one_remedy(card, usable, cudnn, cuda13, part, remedy):
    name, capability = card
    (finding,) = check_card(name, capability, usable, cudnn, cuda13)
    assert (finding.state, finding.what) == ("wrong", name)
    assert part in finding.detail
    assert finding.remedy == remedy


@pytest.mark.parametrize(
    ("card", "cudnn", "cuda13"),
    [
        (V100, "9.10.2.21", None),
        (V100, "9.9.0.52", None),
        (V100, None, None),
        (T4, "9.11.0.98", None),
        (T4, None, "0.10.2"),
        (H100, "9.11.0.98", None),
        (H100, None, "0.10.2"),
    ],
)
def test_card_that_works_gives_no_finding(card, cudnn, cuda13):
    name, capability = card
    assert check_card(name, capability, True, cudnn, cuda13) == []


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A function that puts an nvidia-smi in the way which prints the given text."""

    def install(text, status=0):
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\nprintf '{text}'\nexit {status}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


def test_cards_are_read_from_the_driver(driver):
    driver("Tesla V100-SXM2-16GB, 7.0\\nNVIDIA H100 80GB HBM3, 9.0\\n")
    assert installation._nvidia_cards() == [("Tesla V100-SXM2-16GB", 7.0), ("NVIDIA H100 80GB HBM3", 9.0)]


@pytest.mark.parametrize(("text", "status"), [("", 0), ("No devices were found\\n", 6), ("Tesla K80, [N/A]\\n", 0)])
def test_driver_that_tells_nothing_gives_no_cards(driver, text, status):
    driver(text, status)
    assert installation._nvidia_cards() == []


def test_no_driver_gives_no_cards(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installation._nvidia_cards() == []


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """A cache folder of the test's own; jax's settings are put back afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)


def test_nothing_is_wrong_here(own_cache):
    findings = examine()
    assert [finding for finding in findings if finding.state == "wrong"] == []
    named = {finding.what: finding.detail for finding in findings}
    assert named["jax"] == jax.__version__
    assert {"python", "device", "cache", "pillow", "grain"} <= set(named)
    assert named["cache"].startswith(str(own_cache))
    assert all(finding.remedy == "" for finding in findings if finding.state == "ok")


def test_missing_packages_are_wrong_but_pyarrow_is_only_noted(monkeypatch):
    monkeypatch.setattr(installation, "version_of", lambda package: None if package in ("grain", "pyarrow") else "1.0")
    found = {finding.what: finding for finding in installation._packages() if finding.state != "ok"}
    assert set(found) == {"grain", "pyarrow"}
    assert (found["grain"].state, found["grain"].detail) == ("wrong", "not installed")
    assert (found["pyarrow"].state, found["pyarrow"].remedy) == ("note", "pip install 'covidjax[parquet]'")


def test_jax_and_jaxlib_of_different_versions_are_wrong(monkeypatch):
    monkeypatch.setattr(installation, "version_of", lambda package: "0.9.0" if package == "jaxlib" else "0.10.2")
    (finding,) = (finding for finding in installation._packages() if finding.state == "wrong")
    assert finding.detail == "jax 0.10.2 with jaxlib 0.9.0"
    assert finding.remedy == "pip install jaxlib==0.10.2"


def test_version_of_no_package_is_none():
    assert installation.version_of("no-such-package-at-all") is None


def test_card_that_jax_does_not_find_is_reported(driver, own_cache, monkeypatch):
    driver("Tesla V100-SXM2-16GB, 7.0\\n")
    monkeypatch.setattr(installation, "version_of", lambda package: None)
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices(backend="cpu")[0]])
    found = installation._devices()
    assert [(finding.state, finding.what) for finding in found] == [("ok", "device"), ("wrong", "Tesla V100-SXM2-16GB")]


def test_jax_that_fails_is_a_finding_not_a_crash(own_cache, monkeypatch):
    def fail():
        raise RuntimeError("no\nbackend")

    monkeypatch.setattr(jax, "devices", fail)
    (finding,) = installation._devices()
    assert (finding.state, finding.detail) == ("wrong", "jax finds none: no backend")


def test_cache_that_cannot_be_written_is_wrong(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (finding,) = installation._places()
    assert (finding.state, finding.what) == ("wrong", "cache")
    assert finding.remedy.startswith("export XDG_CACHE_HOME=")
