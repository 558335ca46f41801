"""Shared fixtures: real data and tokenizers by path, and tiny models.

Real material lies in ``../shared`` beside the checkout, or where ``R2REC_SHARED`` says. A missing file skips its
tests on a laptop and fails them when ``CI=true``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("R2REC_COMPILED", "off")  # no process of the tests depends on what another compiled

SHARED = Path(os.environ.get("R2REC_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def _need(path: Path) -> Path:
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{path} is missing: CI needs the real data beside the checkout")
        pytest.skip(f"{path} is missing")
    return path


@pytest.fixture(scope="session")
def ml100k_dir() -> Path:
    return _need(SHARED / "data" / "ml-100k")


@pytest.fixture(scope="session")
def ml1m_dir() -> Path:
    return _need(SHARED / "data" / "ml-1m")


@pytest.fixture(scope="session")
def amazon_sample_dir() -> Path:
    return _need(SHARED / "data" / "amazon-2023-sample")


@pytest.fixture(scope="session")
def deepseek_tokenizer_dir() -> Path:
    return _need(SHARED / "tokenizers" / "deepseek-r1-distill-llama-8b")


@pytest.fixture(scope="session")
def llama2_tokenizer_file() -> Path:
    return _need(SHARED / "tokenizers" / "llama-2" / "tokenizer.model")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real SmolLM2-135M-Instruct: present after a first ``make quickstart`` or ``make model``."""
    cache = Path("~/.cache/r2rec_jax").expanduser()
    found = sorted(cache.rglob("SmolLM2-135M-Instruct.Q4_1.gguf"))
    return found[0] if found else _need(cache / "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture
def heard_signals() -> Iterator[None]:
    """Signals as a program finds them that was started from a terminal: in the background and under ``nohup`` some are
    ignored, and what is ignored at the start stays so."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What one test has compiled is read by the next."""
    import jax

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
             "jax_persistent_cache_min_entry_size_bytes")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0.0, -1), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
