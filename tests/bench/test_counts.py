"""FLOPs and bytes by hand, inputs, rows and the projection: no framework of the other side is needed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from r2rec_jax.bench.__main__ import main, parse_works
from r2rec_jax.bench.compare import rows_of
from r2rec_jax.bench.counts import Size, decode_bytes, sft_flops
from r2rec_jax.bench.inputs import Pair, mixed_pairs, prompts, recorded_lengths, reward, sft_data, text_of
from r2rec_jax.bench.presets import PRESETS, SHAPES, WORKS, Decoding, preset_named
from r2rec_jax.bench.projection import project
from r2rec_jax.bench.report import check_earlier, kept_of, merge
from r2rec_jax.bench.timing import spread
from r2rec_jax.evaluation.tables import provenance
from r2rec_jax.stages.cli import BadInput

RESULTS = Path(__file__).resolve().parents[2] / "results"
ONE_LAYER = {"hidden_size": 4, "intermediate_size": 6, "num_attention_heads": 2, "num_key_value_heads": 1,
             "num_hidden_layers": 1, "vocab_size": 10}


def test_sizes_of_a_layer_by_hand() -> None:
    size = Size.from_hf(ONE_LAYER)
    assert size.linears == 4 * 4 + 2 * (4 * 2) + 4 * 4 + 3 * 4 * 6
    assert size.edges == (4 + 4) + 2 * (4 + 2) + (4 + 4) + 3 * (4 + 6)
    assert size.head == 40


def test_flops_and_bytes_by_hand() -> None:
    size = Size.from_hf(ONE_LAYER)
    pair = Pair((1, 2), (3,))
    linears, adapters = 3 * 4 * size.linears, 3 * 6 * 2 * size.edges
    attention = 3 * 4 * 1 * 2 * 2 * 6  # three passes, 2 products x 2, L, N, H, 1 + 2 + 3 seen pairs
    assert sft_flops(size, [pair], rank=2) == linears + adapters + 4 * 40 * 1 + attention
    shape = Decoding(prompts=1, group=2, prompt_tokens=5, new_tokens=3)
    kv = 2 * 1 * 1 * 2
    assert decode_bytes(size, shape, 4) == 2 * 4 * (size.linears + 40 + 5 * kv + 2 * kv * 1.5)


def test_the_8b_shape_has_8_billion_parameters() -> None:
    size = Size.from_hf(SHAPES["random-8b"])
    assert size.linears + 2 * size.head == pytest.approx(8.03e9, rel=1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_both_sides_are_given_the_same_inputs_of_the_stated_sizes(name: str) -> None:
    preset = PRESETS[name]
    asked = prompts(preset.rollout, 300, "rollout")
    assert asked == prompts(preset.rollout, 300, "rollout") != prompts(preset.rollout, 300, "other")
    assert {len(ids) for ids in asked} == {preset.rollout.prompt_tokens} and min(map(min, asked)) >= 3
    data = sft_data(preset, 300)
    assert [p.length for p in data["equal"]] == [p.length for p in data["throughout"]]
    assert all(len(pair.prompt) == 1 for pair in data["throughout"])
    assert len(mixed_pairs(preset, 300)) == preset.sft.mixed
    assert not any(preset.grpo.decoding.rows % size for size in preset.grpo.pytorch_micro)


def test_mixed_examples_have_recorded_lengths() -> None:
    recorded = recorded_lengths("smollm2")
    made = [(len(p.prompt), len(p.completion)) for p in mixed_pairs(PRESETS["cpu"], 300)]
    assert all(lengths in recorded["ranking"] for lengths in made[:3])
    assert all(lengths in recorded["thought"] for lengths in made[3:])


def test_rewards_read_the_words_of_ids() -> None:
    assert text_of([4, 5, 6]) == "t4 t5 t6" and reward([text_of([4, 5, 6]), ""]) == [pytest.approx(2 / 3), 0.0]


def test_ratios_above_one_mean_that_ours_is_better_whatever_the_direction() -> None:
    preset = PRESETS["smoke"]
    samples = {side: [{"seconds": s, "peak_host_gb": s} for s in times]
               for side, times in (("ours", (1.0, 2.0, 3.0)), ("pytorch", (4.0, 4.0, 5.0)))}
    users = rows_of("recommend", preset, samples, {}, ONE_LAYER)[0]
    assert (users["ours"], users["pytorch"], users["ratio"]) == (1.0, 0.5, 2.0)
    cost = rows_of("load", preset, samples, {}, ONE_LAYER)[0]
    assert (cost["ours"], cost["pytorch"], cost["ratio"], cost["repeats"]) == (2.0, 4.0, 2.0, 3)
    assert cost["spread"] == spread([1.0, 2.0, 3.0]) == 1.0


def test_a_work_measured_anew_replaces_its_rows_and_keeps_the_others() -> None:
    preset = PRESETS["smoke"]

    def row(work: str, ours: float) -> dict:
        return {"work": work, "preset": "smoke", "metric": "users_per_s", "ours": ours, "pytorch": 1.0, "ratio": ours}

    first = merge({}, preset, "recommend", [row("recommend", 2.0)], {}, {"torch": "1"})
    second = merge(first, preset, "rollout", [row("rollout", 3.0)], {}, {"torch": "1"})
    third = merge(second, preset, "recommend", [row("recommend", 4.0)], {}, {"torch": "2"})
    assert [(r["work"], r["ours"]) for r in third["rows"]] == [("rollout", 3.0), ("recommend", 4.0)]
    assert {work: run["versions"]["torch"] for work, run in third["runs"].items()} == {"rollout": "1", "recommend": "2"}


def test_the_projection_is_its_arithmetic() -> None:
    preset = PRESETS["gpu-8b"]
    assert project(preset, []) is None
    values = {("rollout", "prompt_tokens_per_s"): 8 * 1024.0, ("sft", "mixed_tokens_per_s"): 10_000.0,
              ("recommend", "users_per_s"): 5.0,
              ("grpo", "rollout_seconds"): 4.0, ("grpo", "reward_seconds"): 0.0, ("grpo", "reference_seconds"): 1.0,
              ("grpo", "update_seconds"): 3.0}
    rows = [{"work": work, "metric": metric, "preset": "gpu-8b", "ours": value, "pytorch": value}
            for (work, metric), value in values.items()]
    found = project(preset, rows)
    assert found is not None
    lengths = recorded_lengths("llama3")
    mean = {kind: [sum(x) / len(pairs) for x in zip(*pairs, strict=True)] for kind, pairs in lengths.items()}
    tokens = 5000 * (sum(mean["ranking"]) + sum(mean["thought"]))
    assert found["ours"]["sft"] == pytest.approx(tokens / 10_000 / 60)
    prompt, completion = mean["ranking"]
    # One of the four seconds reads the 8 prompts; of 200 seconds for 1,000 users 125 read theirs, PyTorch's path, whose
    # rate is of eight copies, 125 / 8.
    drawn = prompt / 1024 + 3.0 * completion / 256
    assert found["ours"]["grpo"] == pytest.approx(
        500 / 8 * (drawn + 4.0 * (prompt + 8 * completion) / (1024 + 8 * 256)) / 60)
    assert found["pytorch"]["grpo"] == pytest.approx(
        500 / 8 * (drawn + 4.0 * (prompt + completion) / (1024 + 256)) / 60)
    for side, reading in (("ours", 125.0), ("pytorch", 125.0 / 8)):
        assert found[side]["evaluation"] == pytest.approx(
            (reading * prompt / 1024 + (200 - reading) * completion / 256) / 60)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("bench_*.json")), ids=lambda path: path.stem)
def test_committed_projections_are_of_the_rows_beside_them(path: Path) -> None:
    result = json.loads(path.read_text())
    (name,) = re.findall(r"preset ([\w-]+):", result["what"])
    assert json.loads(json.dumps(project(PRESETS[name], result["rows"]))) == result["projection"]


def test_rows_that_stay_must_be_of_the_same_weights_and_sizes(tmp_path: Path) -> None:
    preset = PRESETS["smoke"]
    kept = {"settings": json.loads(json.dumps(preset.settings())),
            "runs": {"load": {"hardware": provenance()["hardware"]}}}
    check_earlier({}, preset, ("sft",), tmp_path)
    check_earlier(kept, replace(preset, repeats=9), ("sft",), tmp_path)
    other = replace(preset, sft=replace(preset.sft, pytorch_micro=(1, 2)))
    check_earlier(kept, other, ("sft",), tmp_path)  # its rows are measured anew
    with pytest.raises(ValueError, match="its sft differ"):
        check_earlier(kept, other, ("grpo",), tmp_path)
    with pytest.raises(ValueError, match="its backbone differ"):
        check_earlier(kept, replace(preset, backbone="/weights"), WORKS, tmp_path)
    other_machine = kept | {"runs": kept["runs"] | {"load": {"hardware": "a GPU"}}}
    check_earlier(other_machine, preset, ("sft", "load"), tmp_path)  # nothing of it stays
    with pytest.raises(ValueError, match="its load are of a GPU"):
        check_earlier(other_machine, preset, ("sft",), tmp_path)


def test_a_stop_leaves_no_rows_of_two_machines_in_one_file() -> None:
    preset = PRESETS["smoke"]
    rows = [{"work": work, "preset": "smoke", "metric": "seconds"} for work in ("load", "recommend")]
    earlier = {"settings": json.loads(json.dumps(preset.settings())), "rows": rows,
               "runs": {work: {"hardware": provenance()["hardware"]} for work in ("load", "recommend")}}
    assert kept_of(earlier, replace(preset, repeats=9), WORKS) == earlier, "until they are measured anew"
    elsewhere = earlier | {"runs": {work: {"hardware": "a GPU"} for work in ("load", "recommend")}}
    assert kept_of(elsewhere, preset, WORKS) == {"rows": [], "runs": {}}
    other = replace(preset, recommend=Decoding(1, 1, 16, 6))
    assert kept_of(earlier, other, ("recommend",)) == {"rows": rows[:1], "runs": {"load": earlier["runs"]["load"]}}
    assert kept_of({}, preset, WORKS) == {}


def test_reading_that_would_take_longer_than_all_gives_no_projection() -> None:
    values = {("rollout", "prompt_tokens_per_s"): 100.0, ("sft", "mixed_tokens_per_s"): 1e4,
              ("recommend", "users_per_s"): 5.0, **{("grpo", f"{phase}_seconds"): 1.0 for phase in (
                  "rollout", "reward", "reference", "update")}}
    rows = [{"work": work, "metric": metric, "preset": "gpu-8b", "ours": value, "pytorch": value}
            for (work, metric), value in values.items()]
    assert project(PRESETS["gpu-8b"], rows) is None


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_works("sft, rollout", WORKS) == ("rollout", "sft")
    with pytest.raises(BadInput, match="rollouts"):
        parse_works("rollouts", WORKS)
    with pytest.raises(ValueError, match="repeats"):
        preset_named("cpu", repeats=0)
    assert main(["--preset", "huge"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
