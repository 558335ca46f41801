"""Thoughts that prompts show (``prompts.thoughts: prompt``): whose they are, and when a teacher is asked for them."""

from __future__ import annotations

import re

from r2rec_jax.train import main as train
from tests.entries.calls import arguments, refused


def test_shown_thoughts_are_those_of_the_swapped_chains(data, tmp_path):
    from r2rec_jax.config import EvaluateConfig
    from r2rec_jax.stages.evaluation import make_exam
    from r2rec_jax.stages.run import RunFolder
    from r2rec_jax.stages.workspace import Workspace

    run = tmp_path / "run"
    assert train(arguments(data, run, "--prompts.thoughts=prompt", "--stages=prepare,thoughts")) == 0
    work = Workspace(RunFolder.existing(run))
    store = run / "thoughts" / "thoughts.jsonl"
    before = store.read_text()
    none = make_exam(work, EvaluateConfig(chains="none"))
    assert store.read_text() == before, "no teacher is asked for what no prompt shows"
    assert not any("  Thought: " in q.prompt for q in none.queries)
    own, swapped = ({q.query_id: q.prompt for q in make_exam(work, EvaluateConfig(chains=chains)).queries}
                    for chains in ("own", "swapped"))
    assert store.read_text() != before, "these are asked for now"
    shown = 0
    for query_id, prompt in swapped.items():
        chains = re.findall(r"^- target user -.*$", prompt, re.M)
        assert prompt.count("  Thought: ") == len(chains) and prompt != own[query_id]
        shown += len(chains)
    assert shown > 0, "a chain that holds a candidate is left out, which with so few items most do"


def test_a_recommendation_does_not_write_thoughts_into_a_run_in_use(data, tmp_path, capsys):
    from r2rec_jax.recommend import main as recommend
    from r2rec_jax.stages.run import RunFolder

    run = tmp_path / "run"
    assert train(arguments(data, run, "--prompts.thoughts=prompt", "--stages=prepare,thoughts")) == 0
    store, argv = run / "thoughts" / "thoughts.jsonl", ["--run", str(run), "--user", "1", "--checkpoint", "base"]
    before = store.read_bytes()
    with RunFolder.existing(run).locked():
        assert re.search(r"run is in use by process \d+ on .*; wait for it", refused(capsys, argv, recommend))
    assert store.read_bytes() == before
    assert "stage 'pretrain'" in refused(capsys, argv, recommend), "a moment later it may write, and go on"
    assert store.read_bytes().startswith(before) and store.stat().st_size > len(before)
