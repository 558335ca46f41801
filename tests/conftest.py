"""Shared fixtures: real data and tokenizers by path, and tiny models.

Real material lies in ``../shared`` beside the checkout, or where ``R2REC_SHARED`` says. A missing file skips its
tests on a laptop and fails them when ``CI=true``. What one test or its processes have compiled is read by the next, in
this run of the tests alone. Three quarters of the tests' time would go into compiling, so that XLA is asked for the
code that is made fastest, not for the one that runs fastest (138 s of compiling in the decoder's tests become 65, and
30 without the newer emitters of fusions, which jaxlib 0.11.2 can no longer do without);
``JAX_DISABLE_MOST_OPTIMIZATIONS=0`` asks for the other.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from r2rec_jax.parallel.kept import VARIABLE, keep_compiled, sweep
from tests.devices import xla_flags

OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false"


def _takes(flag: str) -> bool:
    """Whether this version of XLA knows a flag; one that it does not know ends the process without a word."""
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(start, env=os.environ | {"XLA_FLAGS": xla_flags(flag)}, capture_output=True).returncode == 0


os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have what the process has that started them
    if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1" and _takes(OLDER_EMITTERS):
        os.environ["XLA_FLAGS"] = xla_flags(OLDER_EMITTERS)
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    COMPILED = tempfile.TemporaryDirectory(prefix="r2rec_compiled_", ignore_cleanup_errors=True)
    os.environ[VARIABLE] = COMPILED.name
    keep_compiled()

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


@pytest.fixture(scope="module", autouse=True)
def _swept() -> Iterator[None]:
    """Tests that kill processes leave no program behind that is half written."""
    yield
    sweep(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))
