from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from r2rec_jax.evaluation.predictions import Prediction, PredictionLog, read_predictions
from r2rec_jax.evaluation.protocol import Completions, EvaluationQuery, OnTokens, evaluate_system, judge, summarize
from r2rec_jax.evaluation.ranking import MISS
from r2rec_jax.evaluation.tables import print_table


def make_query(number: int, target: int = 1, n: int = 4, prompt_tokens: int = 3) -> EvaluationQuery:
    return EvaluationQuery(
        query_id=f"test-{number}", user_id=f"u{number}", candidates=tuple(f"i{number}-{j}" for j in range(n)),
        titles=tuple(f"Title {j} \u2028é" for j in range(n)), target=target, prompt=f"prompt {number}",
        prompt_ids=tuple(range(prompt_tokens)))


class ScriptedModel:
    """Answers that depend on the row and the prompt only; records what it was asked, and may die."""

    def __init__(self, dies_after: int | None = None, answers: int = 1) -> None:
        self.calls: list[list[int]] = []
        self.dies_after, self.answers = dies_after, answers

    def __call__(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], on_tokens: OnTokens) -> Completions:
        if self.dies_after is not None and len(self.calls) >= self.dies_after:
            raise KeyboardInterrupt
        self.calls.append(list(rows))
        on_tokens(7)
        order = [np.random.default_rng([row, len(p), answer]).permutation(4) + 1
                 for row, p in zip(rows, prompts, strict=True) for answer in range(self.answers)]
        texts = tuple(f"<think>\nThey like slow films.\n</think>\n<answer>{', '.join(map(str, o))}</answer>"
                      for o in order)
        ends = tuple(row % 3 == 0 for row in rows for _ in range(self.answers))
        return Completions(texts, tuple(len(t) for t in texts), ends, compile_s=0.25)


def plain(predictions: Sequence[Prediction]) -> list[Prediction]:
    return [replace(p, seconds=0.0) for p in predictions]


def test_judge_fills_every_field():
    query = make_query(7, target=2)
    text = "<think>\nThey like slow films.\n</think>\n<answer>4, 3, 4, 9, 1</answer>"
    got = judge("sft", "abc", query, text, tokens=12, truncated=False, seconds=0.5, form="numbers")
    assert got == Prediction(
        system="sft", source="abc", query_id="test-7", user_id="u7", prompt="prompt 7", output=text,
        ranking=("i7-3", "i7-2", "i7-0"), target="i7-2", candidates=("i7-0", "i7-1", "i7-2", "i7-3"),
        target_title="Title 2 \u2028é", rank=2, valid=True, duplicates=1, outside=1, statements=1, tokens=12,
        truncated=False, copied_order=False, seconds=0.5, place=2)


@pytest.mark.parametrize(("text", "rank", "valid", "copied"), [
    ("<answer>1, 2, 3, 4</answer>", 2, True, True),
    ("<answer>1</answer>", 4, True, False),
    ("<answer>0, 5, 17</answer>", MISS, False, False),
    ("I cannot say.", MISS, False, False),
    ("<answer>2, 1", MISS, False, False),
])
def test_ranks_of_partial_and_invalid_answers(text, rank, valid, copied):
    got = judge("base", "s", make_query(0), text, tokens=1, truncated=False, seconds=0, form="numbers")
    assert (got.rank, got.valid, got.copied_order) == (rank, valid, copied)


def test_predictions_come_in_query_order_and_are_on_disk(tmp_path):
    queries = [make_query(i, prompt_tokens=5 + i % 4) for i in range(10)]
    model = ScriptedModel()
    path = tmp_path / "predictions" / "sft.jsonl"
    got = evaluate_system("sft", queries, model, path=path, source="s", batch_size=4)
    assert [p.query_id for p in got] == [q.query_id for q in queries]
    assert [len(c) for c in model.calls] == [4, 4, 2]
    lengths = [len(queries[row].prompt_ids) for call in model.calls for row in call]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(read_predictions(path), key=lambda p: p.query_id) == sorted(got, key=lambda p: p.query_id)
    assert got[3].truncated and not got[4].truncated


def test_a_stopped_evaluation_goes_on_and_equals_one_never_stopped(tmp_path):
    queries = [make_query(i, prompt_tokens=5 + i % 4) for i in range(11)]
    path = tmp_path / "sft.jsonl"
    whole = evaluate_system("sft", queries, ScriptedModel(), path=tmp_path / "whole.jsonl", source="s", batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        evaluate_system("sft", queries, ScriptedModel(dies_after=2), path=path, source="s", batch_size=3)
    raw = path.read_bytes()
    assert raw.count(b"\n") == 6
    # The kill tore the sixth line.
    path.write_bytes(raw[:-7])
    model = ScriptedModel()
    resumed = evaluate_system("sft", queries, model, path=path, source="s", batch_size=3)
    assert plain(resumed) == plain(whole)
    assert len(model.calls) == 3, "the first batch is kept, the torn one and the two missing ones are generated"
    assert len(read_predictions(path)) == 11
    again = ScriptedModel()
    assert evaluate_system("sft", queries, again, path=path, source="s", batch_size=3) == resumed
    assert not again.calls


def test_several_answers_to_a_query_stand_together_and_survive_a_torn_line(tmp_path):
    queries = [make_query(i, prompt_tokens=5 + i % 2) for i in range(5)]
    settings = {"source": "s", "batch_size": 2, "answers": 3}
    path = tmp_path / "sft.jsonl"
    whole = evaluate_system("sft", queries, ScriptedModel(answers=3), path=tmp_path / "whole.jsonl", **settings)
    assert [(p.query_id, p.answer) for p in whole] == [(q.query_id, n) for q in queries for n in range(3)]
    once = evaluate_system("sft", queries, ScriptedModel(), path=tmp_path / "one.jsonl", source="s", batch_size=2)
    assert [p.output for p in whole[::3]] == [p.output for p in once] != [p.output for p in whole[1::3]]
    with pytest.raises(KeyboardInterrupt):
        evaluate_system("sft", queries, ScriptedModel(dies_after=2, answers=3), path=path, **settings)
    path.write_bytes(path.read_bytes()[:-7])
    model = ScriptedModel(answers=3)
    assert plain(evaluate_system("sft", queries, model, path=path, **settings)) == plain(whole)
    assert len(model.calls) == 2, "a query with two of its three answers is asked again"
    assert len(read_predictions(path)) == 15
    row = summarize(whole, dataset="d", negatives="uniform", split="test", seed=0)
    assert (row["users"], row["answers"], row["hr@1"]) == (5, 3, np.mean([p.rank == 1 for p in whole]))
    assert row["seconds_per_user"] == pytest.approx(sum(p.seconds for p in whole) / 5)
    with pytest.raises(ValueError, match="as many of every query; got 14 records"):
        summarize(whole[:-1], dataset="d", negatives="uniform", split="test", seed=0)
    with pytest.raises(ValueError, match="3 answers a prompt; got 2 for 2"):
        evaluate_system("sft", queries, ScriptedModel(), path=tmp_path / "few.jsonl", **settings)


def test_the_place_counts_all_that_is_written():
    """Of two films of one name a bare name is neither, so the target is second; of a list of titles, its own labels."""
    films = replace(make_query(0, target=1), titles=("Heat (1986)", "Heat (1995)", "Big (1988)", "Fargo (1996)"))
    for text, form, place in (("Heat\nHeat (1995)", "titles", 2), ("1. Heat (1995)\n2. Big (1988)", "numbers", 1),
                              ("Big (1988)", "titles", 4)):
        got = judge("sft", "abc", films, f"<answer>\n{text}\n</answer>", 1, False, 0, form)
        assert got.place == place, text


def test_a_file_of_a_version_that_drew_one_answer_is_read(tmp_path):
    kept = judge("base", "s", make_query(0), "", tokens=1, truncated=False, seconds=0, form="numbers")
    plain_line = json.loads(kept.to_json())
    del plain_line["answer"], plain_line["place"]
    (tmp_path / "p.jsonl").write_text(json.dumps(plain_line) + "\n")
    assert read_predictions(tmp_path / "p.jsonl") == [replace(kept, place=0)]


def test_predictions_of_another_checkpoint_are_not_reused(tmp_path):
    queries = [make_query(i) for i in range(3)]
    path = tmp_path / "sft.jsonl"
    evaluate_system("sft", queries, ScriptedModel(), path=path, source="old", batch_size=2)
    model = ScriptedModel()
    got = evaluate_system("sft", queries, model, path=path, source="new", batch_size=2)
    assert sum(map(len, model.calls)) == 3
    assert {p.source for p in read_predictions(path)} == {"new"} == {p.source for p in got}


def test_bad_input_is_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    with pytest.raises(ValueError, match="at least one"):
        evaluate_system("sft", [], ScriptedModel(), path=path, source="s", batch_size=2)
    with pytest.raises(ValueError, match="distinct"):
        evaluate_system("sft", [make_query(1)] * 2, ScriptedModel(), path=path, source="s", batch_size=2)
    with pytest.raises(ValueError, match="batch_size must be >= 1"):
        evaluate_system("sft", [make_query(1)], ScriptedModel(), path=path, source="s", batch_size=0)
    with pytest.raises(ValueError, match="1 answers a prompt"):
        evaluate_system("sft", [make_query(1)], lambda *_: Completions((), (), ()), path=path, source="s",
                        batch_size=1)
    with pytest.raises(ValueError, match="target among them"):
        make_query(1, target=4)


def test_a_line_that_is_no_prediction_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"query_id": "a"}\n')
    with pytest.raises(ValueError, match=r"p\.jsonl, line 1, is no prediction"):
        read_predictions(path)
    good = judge("base", "s", make_query(0), "", tokens=1, truncated=False, seconds=0, form="numbers").to_json()
    path.write_text(f"{good}\n{good}\n")
    with pytest.raises(ValueError, match="line 2 repeats answer 0 to test-0"):
        read_predictions(path)


def test_json_round_trip_keeps_misses_and_ranks(tmp_path):
    log = PredictionLog(tmp_path / "p.jsonl", "s")
    for number, text in enumerate(["", "<answer>2</answer>"]):
        log.append([judge("base", "s", make_query(number), text, tokens=1, truncated=True, seconds=0.1,
                          form="numbers")])
    lines = (tmp_path / "p.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["rank"] for line in lines[:2]] == [None, 1]
    assert read_predictions(tmp_path / "p.jsonl") == log.all()


def test_summary_counts_invalid_answers_as_misses():
    texts = ["<answer>2</answer>", "<answer>1, 2, 3</answer>", "<answer>4, 4, 3, 2, 9</answer>", "no answer"]
    predictions = [judge("base", "s", make_query(i), text, tokens=10 + i, truncated=i == 3, seconds=float(i),
                         form="numbers") for i, text in enumerate(texts)]
    row = summarize(predictions, dataset="ml-100k", negatives="uniform", split="last-positive", seed=3)
    assert row["hr@1"] == 1 / 4
    assert row["hr@3"] == 3 / 4
    assert row["ndcg@3"] == pytest.approx((1 + 1 / np.log2(3) + 1 / 2) / 4)
    assert row["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)
    assert (row["valid_rate"], row["truncation_rate"], row["order_copying_rate"]) == (0.75, 0.25, 0.25)
    assert (row["duplicates_per_answer"], row["outside_per_answer"]) == (0.25, 0.25)
    assert (row["users"], row["seconds_per_user"], row["tokens_per_answer"]) == (4, 1.5, 11.5)
    assert [row[k] for k in ("system", "dataset", "negatives", "split", "seed")] == [
        "base", "ml-100k", "uniform", "last-positive", 3]
    json.dumps(row, allow_nan=False)


def test_summary_counts_users_and_what_they_were_asked():
    def row(of_user: int) -> dict:
        predictions = [judge("sft", "s", replace(make_query(i), user_id=f"u{i // of_user}"), "<answer>1</answer>",
                             tokens=1, truncated=False, seconds=0, form="numbers") for i in range(6)]
        return summarize(predictions, dataset="d", negatives="uniform", split="training (sft)", seed=0)

    assert (row(3)["users"], row(3)["questions"], row(3)["answers"]) == (2, 6, 1)
    assert row(1)["users"] == 6 and "questions" not in row(1)
    text = io.StringIO()
    print_table([row(3)], file=text)
    assert "2 users, 6 questions" in text.getvalue()


def test_summary_refuses_mixed_or_missing_systems():
    one = judge("base", "s", make_query(0), "", tokens=1, truncated=False, seconds=0, form="numbers")
    for predictions in ([], [one, replace(one, system="sft")]):
        with pytest.raises(ValueError, match="one system"):
            summarize(predictions, dataset="d", negatives="uniform", split="last-positive", seed=0)


def test_compile_time_is_not_counted_per_user(tmp_path):
    class Slow(ScriptedModel):
        def __call__(self, rows, prompts, on_tokens):
            return replace(super().__call__(rows, prompts, on_tokens), compile_s=1e6)

    got = evaluate_system("sft", [make_query(0)], Slow(), path=tmp_path / "p.jsonl", source="s", batch_size=1)
    assert got[0].seconds == 0
