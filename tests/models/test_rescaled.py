"""Random weights scaled for training from scratch."""

from __future__ import annotations

import numpy as np
import pytest

from r2rec_jax.config import TinyConfig
from r2rec_jax.models.backbone import parameter, random_backbone, rescaled, tiny_hf_config


def test_every_kind_of_weight_has_its_deviation_and_norms_stay() -> None:
    tiny = TinyConfig(hidden_size=64, layers=3, heads=4, kv_heads=2, ffn=96)
    hf = tiny_hf_config(tiny, vocab_size=500, bos_id=1, eos_id=2, pad_id=0)
    before = random_backbone(hf, None, "float32", seed=3)
    after = rescaled(before)
    assert after.weights_sha256 != before.weights_sha256

    def deviation(*path: str) -> float:
        return float(np.std(np.asarray(parameter(after.base, path))))

    assert deviation("embed") == pytest.approx(64**-0.5, rel=1e-4)
    for name in ("q", "k", "v", "gate", "up"):
        assert deviation("layers", name, "kernel") == pytest.approx(0.02, rel=1e-4)
    for name in ("o", "down"):
        assert deviation("layers", name, "kernel") == pytest.approx(0.02 / 6**0.5, rel=1e-4)
    assert (np.asarray(parameter(after.base, ("norm", "scale"))) == 1).all()
