"""The entries as a user calls them, on a run that is finished: what they leave behind, and one-line reasons."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from r2rec_jax.train import main as train
from tests.entries.calls import arguments, refused


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train(arguments(data, folder)) == 0
    return folder


def test_the_whole_recipe_leaves_everything_behind(finished):
    for name in ("run.json", "config.yaml", "metrics.jsonl", "plots/loss.png", "plots/reward.png", "summary.json",
                 "evaluate/results-test.json", "evaluate/table.md", "export/peft/adapter_model.safetensors",
                 "export/merged/model.safetensors", "export/merged/tokenizer.json", "grpo/completions.jsonl"):
        assert (finished / name).stat().st_size > 0, name
    result = json.loads((finished / "evaluate/results-test.json").read_text())
    assert [row["system"] for row in result["rows"]] == ["pretrained", "sft", "sft+grpo"]
    assert result["commit"] and result["versions"]["jax"] and result["hardware"]
    trained = json.loads((finished / "summary.json").read_text())["stages"]
    assert result["what"].endswith(f"SFT of {trained['sft']['steps']} steps (8 queries), "
                                   f"GRPO of {trained['grpo']['steps']} steps (4 queries)")
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"pretrain", "sft", "grpo"}
    assert [row["step"] for row in rows if row.get("eval_prompts") == 2 and "eval_hit" in row] == [0, 1, 2]
    line = json.loads((finished / "evaluate/predictions-test-sft.jsonl").read_text().splitlines()[0])
    assert {"prompt", "output", "ranking", "target"} <= line.keys()


def test_what_is_lost_is_made_again(finished, data, tmp_path, capsys):
    """A run whose folder was cleaned or copied in part: the stages concerned run again, and leave the same."""
    from r2rec_jax.evaluate import main as evaluate

    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    event, weights = run / "prepare/event_training.npy", run / "sft/adapter/adapter_model.safetensors"
    before = [event.read_bytes(), weights.read_bytes()]
    event.unlink()
    shutil.rmtree(run / "sft")
    shutil.rmtree(run / "export/merged")
    line = refused(capsys, ["--run", str(run), "--checkpoint", "sft"], evaluate)
    assert "event_training.npy" in line and "prepare the data again" in line
    assert train(arguments(data, run, "--stages", "prepare")) == 0
    line = refused(capsys, ["--run", str(run), "--checkpoint", "sft"], evaluate)
    assert line.endswith("sft/ is missing; python -m r2rec_jax.train --stages sft makes it again")
    assert train(arguments(data, run)) == 0
    shown = capsys.readouterr().err
    assert "sft: of what it made, sft/ is no longer in" in shown and "export: of what it made, merged is" in shown
    assert shown.count("nothing has changed") == 5
    assert [event.read_bytes(), weights.read_bytes()] == before
    assert (run / "export/merged/model.safetensors").exists()


def test_nothing_is_run_twice(finished, data, capsys):
    before = {p: p.stat().st_mtime_ns for stage in ("prepare", "sft", "grpo", "export")
              for p in (finished / stage).rglob("*") if p.is_file()}
    assert train(arguments(data, finished)) == 0
    assert capsys.readouterr().err.count("nothing has changed") == 7
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())


@pytest.mark.slow
def test_what_another_run_has_finished_is_taken_and_nothing_else(finished, data, tmp_path, capsys):
    """The donor was stopped within GRPO, which is run here, to the same adapter bit for bit."""
    donor, run = tmp_path / "donor", tmp_path / "run"
    shutil.copytree(finished, donor)
    done = json.loads((donor / "stages.json").read_text())
    (donor / "stages.json").write_text(json.dumps({name: done[name] for name in done if name != "grpo"}))
    argv = arguments(data, run, "--stages=prepare,thoughts,pretrain,sft,grpo", "--reuse", str(tmp_path / "no"),
                     str(donor))
    assert train(argv) == 0
    said = capsys.readouterr().err
    assert "no holds no finished stage" in said and "grpo: started" in said
    assert [f"{stage}: taken from {donor}" in said for stage in done] == [True] * 4 + [False] * 3
    shutil.rmtree(donor)
    for stage in ("sft", "grpo"):
        name = f"{stage}/adapter/adapter_model.safetensors"
        assert (run / name).read_bytes() == (finished / name).read_bytes()
    rows = [[{k: v for k, v in json.loads(line).items() if "seconds" not in k}
             for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (run, finished)]
    assert sorted(map(str, rows[0])) == sorted(map(str, rows[1]))
    assert json.loads((run / "stages.json").read_text())["sft"]["reused_from"] == str(donor)
    assert train(argv) == 0 and capsys.readouterr().err.count("nothing has changed") == 5


def test_other_settings_are_refused(finished, data, capsys):
    assert "sft.lr" in refused(capsys, arguments(data, finished, "--sft.lr=0.5"))


def test_a_run_can_be_compared(finished, tmp_path, capsys):
    from r2rec_jax.evaluate import main as evaluate
    from r2rec_jax.evaluation.predictions import read_predictions
    from r2rec_jax.evaluation.ranks import read_ranks

    out = tmp_path / "out.json"
    assert evaluate(["--compare", str(finished), "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["system"] for row in rows] == ["pretrained", "sft", "sft+grpo"]
    ranks = {r.query_id: r.rank for r in read_ranks(finished / "evaluate/ranks-test-uniform-sft.jsonl")}
    assert ranks == {p.query_id: p.rank for p in read_predictions(finished / "evaluate/predictions-test-sft.jsonl")}
    assert all(row["by_popularity"][0]["edges"][0] >= 0 for row in rows)


def test_what_was_answered_under_earlier_settings_is_not_compared(finished, data, tmp_path, capsys):
    """A start that does not evaluate leaves the ranks, and the run has other settings from then on."""
    from r2rec_jax.evaluate import main as evaluate

    run, out = tmp_path / "run", tmp_path / "out.json"
    shutil.copytree(finished, run)
    assert train(arguments(data, run, "--stages=prepare", "--evaluate.temperature=0.31", "--evaluate.answers=3")) == 0
    assert evaluate(["--run", str(run), "--checkpoint", "sft"]) == 0
    capsys.readouterr()
    assert evaluate(["--compare", str(run), "--json", str(out)]) == 0
    assert [row["system"] for row in json.loads(out.read_text())["rows"]] == ["sft"]
    said = capsys.readouterr().err
    for system in ("pretrained", "sft+grpo"):
        assert f"uniform-{system}.jsonl is left out, it was answered under other settings" in said
    assert said.count("(temperature 0.0 instead of 0.31, answers 1 instead of 3)") == 2


def test_other_data_are_refused_or_begun_anew(finished, data, tmp_path, capsys):
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(finished, run)
    shutil.copytree(data, other)
    (other / "u.user").write_text((other / "u.user").read_text().replace("|M|", "|F|"))
    argv = arguments(other, run, "--stages=prepare,thoughts")
    assert "data.path must hold the files that" in (said := refused(capsys, argv)) and "u.user changed" in said
    assert train([*arguments(other, tmp_path / "new", "--stages=prepare"), "--reuse", str(run)]) == 0
    assert "prepared from other data (u.user), which is not taken" in capsys.readouterr().err
    assert train([*argv, "--overwrite"]) == 0
    assert json.loads((run / "stages.json").read_text()).keys() == {"prepare", "thoughts"}
    shutil.rmtree(other)
    assert train(argv) == 0, "what is prepared needs its source no longer"


def test_evaluate_entry(finished, tmp_path, capsys):
    from r2rec_jax.evaluate import main as evaluate

    out = tmp_path / "out.json"
    assert evaluate(["--run", str(finished), "--checkpoint", "sft", "--users", "2", "--json", str(out)]) == 0
    row = json.loads(out.read_text())["rows"][0]
    assert (row["system"], row["users"]) == ("sft", 2) and "HitRatio@1" in capsys.readouterr().out
    assert "frozen test queries" in refused(
        capsys, ["--run", str(finished), "--checkpoint", "sft", "--users", "999"], evaluate)


@pytest.mark.parametrize(("flags", "name", "method"), [
    (["--likelihood=prior"], "likelihood", "likelihood"), (["--lines=names"], "lines", "likelihood"),
    (["--method=likelihood", "--temperature=0.5"], "temperature", "generate"),
    (["--method=likelihood", "--top_p=1"], "top_p", "generate"),
    (["--method=likelihood", "--max_new_tokens=9"], "max_new_tokens", "generate"),
    (["--method=likelihood", "--answers=1"], "answers", "generate"),
])
def test_a_flag_of_another_method_is_refused(finished, capsys, flags, name, method):
    """The run's own settings may be of either: it has a temperature, and the rest of a look by likelihood is there."""
    from r2rec_jax.evaluate import main as evaluate

    before = sorted(path.name for path in (finished / "evaluate").iterdir())
    said = refused(capsys, ["--run", str(finished), "--checkpoint=sft", *flags], evaluate)
    own = {"likelihood": "generate", "generate": "likelihood"}[method]
    assert said == (f"error: --{name} is of --method {method}; the method is {own}; leave it out, or give "
                    f"--method {method}")
    assert sorted(path.name for path in (finished / "evaluate").iterdir()) == before


def test_a_look_stands_beside_the_runs_own_figures(finished):
    """Another temperature or fewer users are files of their own, and no comparison sees them; what the run has
    answered already is not asked again."""
    from r2rec_jax.evaluate import main as evaluate

    folder, argv = finished / "evaluate", ["--run", str(finished), "--checkpoint", "sft"]
    assert evaluate(argv) == 0
    own = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert evaluate([*argv, "--temperature", "0.9", "--users", "1"]) == 0
    assert evaluate([*argv, "--users", "1"]) == 0
    now = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name: now[name] for name in own} == own
    assert now.keys() - own.keys() == {
        "predictions-test-temperature-0.9-users-1-sft.jsonl", "ranks-temperature-0.9-users-1-test-uniform-sft.jsonl",
        "results-test-temperature-0.9-users-1-sft.json", "predictions-test-users-1-sft.jsonl",
        "ranks-temperature-0.9-users-1-test-uniform-sft.json", "ranks-users-1-test-uniform-sft.jsonl",
        "ranks-users-1-test-uniform-sft.json", "results-test-users-1-sft.json"}
    (line,) = now["predictions-test-users-1-sft.jsonl"].splitlines()
    assert line in own["predictions-test-sft.jsonl"].splitlines()


def test_answers_of_another_adapter_are_given_anew(finished, data, tmp_path):
    """Trained again under the same settings, and not to the same numbers: an answer belongs to the adapter itself."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    from r2rec_jax.evaluate import main as evaluate

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    argv = ["--run", str(run), "--checkpoint", "sft", "--users", "3"]
    file, weights = run / "evaluate/predictions-test-sft.jsonl", run / "sft/adapter/adapter_model.safetensors"
    before = file.read_text()
    assert evaluate(argv) == 0 and file.read_text() == before
    save_file({name: np.zeros_like(x) for name, x in load_file(weights).items()}, weights)
    assert evaluate(argv) == 0
    assert not set(before.splitlines()) & set(file.read_text().splitlines())


def test_results_name_the_code_that_trained(finished):
    stages = json.loads((finished / "stages.json").read_text())
    assert all({"commit", "dirty", "hardware"} <= entry.keys() for entry in stages.values())
    trained = json.loads((finished / "evaluate/results-test.json").read_text())["trained"]
    assert trained.keys() == {"prepare", "thoughts", "pretrain", "sft", "grpo"}
    assert trained["sft"]["commit"] == stages["sft"]["commit"]


def test_evaluate_entry_with_other_negatives(finished, tmp_path, capsys):
    from r2rec_jax.evaluate import main as evaluate

    own, others = tmp_path / "own.json", tmp_path / "others.json"
    argv = ["--run", str(finished), "--checkpoint", "sft", "--users", "2"]
    assert evaluate([*argv, "--negatives", "uniform", "--json", str(own)]) == 0
    assert evaluate([*argv, "--negatives", "popularity", "--json", str(others)]) == 0
    rows = [json.loads(path.read_text())["rows"][0] for path in (own, others)]
    assert [(row["negatives"], row["split"]) for row in rows] == [
        ("uniform", "last-positive"), ("popularity", "last-positive")]
    assert (finished / "evaluate" / "results-test-popularity-users-2-sft.json").exists()
    lines = [{p["query_id"]: p for p in map(json.loads, (finished / "evaluate" / name).read_text().splitlines())}
             for name in ("predictions-test-sft.jsonl", "predictions-test-popularity-users-2-sft.jsonl")]
    for query_id, answer in lines[1].items():
        assert answer["target"] == lines[0][query_id]["target"]
        assert set(answer["candidates"]) != set(lines[0][query_id]["candidates"])
    assert "evaluate.negatives must be null for training queries" in refused(
        capsys, [*argv, "--split", "sft", "--negatives", "popularity"], evaluate)


@pytest.mark.slow
def test_evaluate_entry_by_likelihood(finished, tmp_path, capsys):
    from r2rec_jax.evaluate import main as evaluate

    for more, system in (((), "sft-likelihood"), (("--likelihood=prior",), "sft-likelihood-prior")):
        out = tmp_path / f"{system}.json"
        argv = ["--run", str(finished), "--checkpoint=sft", "--users=3", "--method=likelihood", *more]
        assert evaluate([*argv, "--json", str(out)]) == 0
        (row,) = json.loads(out.read_text())["rows"]
        assert (row["system"], row["users"], row["valid_rate"]) == (system, 3, 1.0)
        assert (finished / "evaluate" / f"results-test-{system}.json").exists()
        file = finished / "evaluate" / f"predictions-test-{system}.jsonl"
        answers = [json.loads(line) for line in file.read_text().splitlines()]
        assert all(len(a["ranking"]) == 20 and a["prompt"].endswith(")\n") for a in answers)
    before = file.read_bytes()
    assert evaluate(argv) == 0 and file.read_bytes() == before, "answers that are there are not scored again"
    assert evaluate(["--compare", str(finished), "--json", str(out)]) == 0
    assert {"sft", "sft-likelihood", "sft-likelihood-prior"} <= {r["system"] for r in
                                                                 json.loads(out.read_text())["rows"]}


@pytest.mark.slow
def test_evaluate_entry_with_other_chains(finished, tmp_path, capsys):
    from r2rec_jax.evaluate import main as evaluate

    argv = ["--run", str(finished), "--checkpoint=sft", "--users=3"]
    prompts = {}
    for chains in ("own", "swapped", "none"):
        out = tmp_path / f"{chains}.json"
        assert evaluate([*argv, f"--chains={chains}", "--json", str(out)]) == 0
        result = json.loads(out.read_text())
        assert [(row["system"], row["chains"]) for row in result["rows"]] == [("sft", chains)]
        assert (result["prompts"]["left_out_chains"] > 0) == (chains == "swapped")
        file = "predictions-test-sft.jsonl" if chains == "own" else f"predictions-test-chains-{chains}-sft.jsonl"
        answers = [json.loads(line) for line in (finished / "evaluate" / file).read_text().splitlines()]
        prompts[chains] = {a["query_id"]: re.findall(r"^- target user -.*$", a["prompt"], re.M) for a in answers}
    assert all(prompts["own"].values()) and not any(prompts["none"].values())
    assert all(prompts["swapped"][name] != own for name, own in prompts["own"].items())
    assert evaluate(["--compare", str(finished), "--negatives=uniform", "--json", str(out)]) == 0
    systems = [row["system"] for row in json.loads(out.read_text())["rows"]]
    assert systems.count("sft") == 1 and not any("chains" in name for name in systems)


def test_recommend_entry(finished, tmp_path, capsys):
    from r2rec_jax.recommend import main as recommend

    out = tmp_path / "out.json"
    assert recommend(["--run", str(finished), "--user", "1", "--top", "3", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Interaction chains" in shown and "Reasoning" in shown
    result = json.loads(out.read_text())
    assert result["user"] == "1" and len(result["ranking"]) <= 3 and len(result["candidates"]) == 20
    assert "nobody" in refused(capsys, ["--run", str(finished), "--user", "nobody"], recommend)


def test_a_recommendation_names_what_was_liked_as_the_prompt_does(finished):
    from dataclasses import replace

    from r2rec_jax.data.tables import ItemTable
    from r2rec_jax.stages.recommending import recommend
    from r2rec_jax.stages.run import RunFolder
    from r2rec_jax.stages.workspace import Workspace

    work = Workspace(RunFolder.existing(finished))
    dataset = work.prepared.dataset
    titles = [f"Film <{item.item_id}>, The ({item.year})" for item in dataset.items]
    items = ItemTable(dataset.items.ids, titles, dataset.items.year)
    work.prepared = replace(work.prepared, dataset=replace(dataset, items=items))
    result = recommend(work, "1", "base", 3)
    assert result["liked"] == re.findall(r"^- (The Film .* \(\d{4}\))", result["prompt"], re.M)[:3]


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_what_is_loaded_for_an_export_alone_stays_in_host_memory(finished, tmp_path, monkeypatch, form):
    """A model that several devices share need not fit the first of them."""
    import jax

    from r2rec_jax.export import main as export
    from r2rec_jax.stages import workspace

    seen, load = [], workspace.Workspace._load_from
    monkeypatch.setattr(workspace.Workspace, "_load_from", lambda *args: [
        seen.append(jax.config.jax_default_device), load(*args)][1])
    assert export(["--run", str(finished), "--format", form, "--out", str(tmp_path / form)]) == 0
    assert seen == [jax.local_devices(backend="cpu")[0]] and jax.config.jax_default_device is None


def test_export_entry(finished, tmp_path, capsys):
    from r2rec_jax.export import main as export

    out = tmp_path / "adapter"
    argv = ["--run", str(finished), "--format", "peft", "--checkpoint", "sft", "--out", str(out)]
    assert export(argv) == 0
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {p.name for p in out.iterdir()}
    assert "empty" in refused(capsys, argv, export)


def test_score_entry_gives_our_logprobs(finished, tmp_path):
    from r2rec_jax.score import main as score

    text, out = tmp_path / "text.txt", tmp_path / "out.json"
    text.write_text("Rank 20 candidate movies", encoding="utf-8")
    assert score(["--backbone", str(finished / "export" / "merged"), "--text-file", str(text), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["logprobs"][0] is None and all(x < 0 for x in found["logprobs"][1:])
    assert len(found["logprobs"]) == len(found["token_ids"]) > 3


def test_the_local_teacher_is_asked_and_what_it_gives_up_is_counted(finished, data, tmp_path):
    """A model of a few thousand parameters writes no valid thought; the run says so and goes on without."""
    run = tmp_path / "run"
    own = ["--backbone.source", str(finished / "export" / "merged"), "--thoughts.teacher=local",
           "--thoughts.attempts=2", "--thoughts.max_new_tokens=8", "--sft.eval_every=0", "--stages=prepare,thoughts"]
    assert train(arguments(data, run, *own)) == 0
    result = json.loads((run / "stages.json").read_text())["thoughts"]["result"]
    assert result["teacher"] == "local" and result["given_up"] > 1 and result["examples"]["ranking"] == 8
    assert len((run / "thoughts" / "thoughts.jsonl").read_text().splitlines()) == result["given_up"]
