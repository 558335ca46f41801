"""Data that the entries are called with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.synthetic import write_ml100k


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_ml100k(tmp_path_factory.mktemp("data"))
