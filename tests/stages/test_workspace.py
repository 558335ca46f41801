from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from r2rec_jax.config import BackboneConfig, TrainConfig
from r2rec_jax.stages.workspace import Workspace


def workspace(attention: Any) -> Workspace:
    run: Any = SimpleNamespace(config=TrainConfig(backbone=BackboneConfig(source="/nowhere", attention=attention)))
    return Workspace(run, alone=True)


def test_attention_that_cannot_run_is_refused_before_weights_are_looked_for() -> None:
    with pytest.raises(ValueError, match=r"^backbone.attention must be 'auto' or 'xla' .*; got 'splash'$"):
        _ = workspace("splash").backbone


def test_the_decoder_prefills_by_the_configured_attention() -> None:
    work = workspace("xla")
    vars(work).update(backbone=SimpleNamespace(graphdef=None, config=SimpleNamespace(vocab_size=9)),
                      tokenizer=SimpleNamespace(end_ids=(2,), pad_within=lambda size: 0))
    assert work.decoder.attention == "xla"
