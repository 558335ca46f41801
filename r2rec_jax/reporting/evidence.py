"""``EVIDENCE.md``: what the result files of lists of experiments say, for readers who have not seen the paper.

Every table is made from the files and names negatives, split, seeds and users. What people read out of one of them
stands in ``<list>.md`` beside the list file and is put under its tables as it is; what they conclude from all of them
stands in ``evidence.md`` beside the result files, and comes before the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r2rec_jax.evaluation.comparison import ALPHA, role
from r2rec_jax.reporting.cells import interval, spread, table
from r2rec_jax.reporting.comparison import listed, position_rates, position_stretches, probability
from r2rec_jax.reporting.evidence_rewards import reward_lines, reward_table
from r2rec_jax.reporting.overview import main_rows, overview

Entry = Mapping[str, Any]

METRICS = {"hr@1": "HitRatio@1", "first@1": "first line", "hr@3": "HitRatio@3", "ndcg@3": "NDCG@3"}
RATES = {"valid_rate": "valid", "outside_per_answer": "outside", "order_copying_rate": "order copied",
         "true_rate": "true, verbatim", "tokens_per_answer": "tokens"}
CHAINS = {"own": "its own", "swapped": "another user's", "none": "none"}
READABLE = 0.5
"""Below this share of valid answers HitRatio@1 measures the form of an answer."""

INTRODUCTION = """# Evidence

A recommender is asked which of 20 items a person chose next: the true one and 19 others. A language model answers in
words; what is counted is where it puts the true item. This document is made by
`python -m r2rec_jax.experiments --report` from the files `results/evidence_*.json`; only *What has come out* and the
sections called *Reading* are written by hand."""

TERMS = """## Terms

- **HitRatio@1**: share of people whose true item comes first (guessing: .05); **HitRatio@3**: among the first three
  (.15); **NDCG@3**: as HitRatio@3, but second and third place count less. An answer that names no candidate is a miss.
- **first line**: HitRatio@1 by the first line as it is written. The other figures, and R_rank, skip lines that are no
  candidates, as the method is defined: a film that is not in the list costs nothing there. **outside**: such lines an
  answer.
- **valid**: share of answers that name a candidate. A model that merely learns the form of an answer gains here.
- **order copied**: share of answers that only repeat the order of the list.
- **true, verbatim**: share of reasoning statements, but for the one that names the answer, that the author of the
  examples could have made of this prompt, word for word. A true statement in other words counts as invented. A dash
  stands where nobody reasons or nothing was counted.
- **SmolLM2-135M-Instruct**: as `backbone.source: smollm2-135m`, its linears rounded to 4 bits (Q4_1) and read back.
- **list**: a set of experiments that is run together, with the settings that its experiments share.
- **base**: the model as it comes. **pretrained**: the model, from scratch or as it comes, after reading what people
  liked and chose, where that is part of the recipe. **sft**: after learning from written examples (supervised
  fine-tuning). **sft+grpo**: then trained by rewards on its own answers (group relative policy optimisation).
  **grpo**: trained by rewards without the examples. Two rewards are added: R_rank for the place of the true item,
  R_step for the number of reasoning statements. R_true, for statements that are true of their prompt, is ours: it is
  measured, and adds nothing unless an experiment gives it a weight.
- **-likelihood**: the same model, but the candidates are ranked by how likely their lines are after the person's latest
  likes. No form of answer can be learned or missed, so this row shows what the model knows. The paper has no such row.
- **signal**: what the gradients of a step's groups (the answers to one prompt each) have in common; the rest,
  **noise**, comes of which prompts and answers were drawn. Where signal equals noise a larger step begins to gain
  little (the simple noise scale of McCandlish et al., 2018). Groups left out of an update are not counted.
- **KL**: how far the answers have moved, in nats a token, from those of the model that GRPO began with. **look**: the
  same held-out prompts asked again during training.
- **popularity, item-knn, ease, sasrec**: classical recommenders, without language.
- **chains**: ways through other people's ratings from one liked item to another, shown in the prompt.
- **negatives**: how the 19 others are drawn. **split**: which of a person's ratings is the true item; for
  `last-positive` the last one that was liked.
- **±**: standard deviation over seeds; a seed draws candidates, all randomness of training, and people where there are
  more of them than are asked. The people's earlier choices are what models are trained on, their last one is asked for.
- **p**: how often a difference as large would come from drawing other people if the two were equal, for the models as
  they were trained (paired bootstrap). **Holm**: p after correction for the number of differences in the table on the
  same metric; *real* is what stays below .05 there; *no* means that it is not shown, not that the two are equal. Would
  other trainings give the same? That is another question: see **by seed**."""


def evidence_report(parts: Sequence[tuple[Entry, str, Mapping[str, str]]], conclusions: str = "") -> str:
    """The whole document.

    Args:
        parts: of each result file: its contents, what was written by hand, and links to its plots (``rewards``,
            ``hits``), as the document is to have them.
        conclusions: what was written by hand about all of them; empty for no such section.
    """
    lists = [_list(found, reading.strip(), plots) for found, reading, plots in parts]
    first = ["## What has come out", conclusions.strip()] * bool(conclusions.strip())
    glance = ["## At a glance", overview([found for found, _, _ in parts])]
    return "\n\n".join([INTRODUCTION, TERMS, *first, *glance, *lists]) + "\n"


def _list(found: Entry, reading: str, plots: Mapping[str, str]) -> str:
    headline = [row for row in found["rows"] if row["headline"] and row["chains"] == "own"]
    others = [row for row in found["rows"] if not row["headline"] and row["chains"] == "own"]
    validation = [row for row in others if "validation" in row["split"] or row["split"] == "last-positive-but-one"]
    parts = [f"## {found['title']}", found["what"], "### What was run", run_table(found)]
    if headline:
        parts += ["### Main results", result_table(headline)]
    if found["significance"]:
        parts += ["### Are the differences real?", _conditions(found), test_table(found["significance"])]
        parts += [ratio_line(found)] * bool(ratio_line(found))
    if found["curves"]:
        parts += ["### Training by rewards", "Means over the training prompts of a step, mean and spread over seeds. "
                  "Each step has prompts of its own, so first and last steps differ by their prompts too.",
                  reward_table(found["curves"]), reward_lines(found["curves"]),
                  f"![Rewards, KL, entropy, length and order copying of every GRPO step]({plots['rewards']})"]
    if found["breakdowns"]:
        parts += ["### Where do the hits come from?", *_breakdowns(found),
                  f"![HitRatio@1 by popularity and by place of the true item]({plots['hits']})"]
    test_rows = [row for row in others if row not in validation]
    for heading, rows, tests in (("Other experiments", test_rows, found["variants"]),
                                 ("Searches, judged on validation queries", validation, found["searches"])):
        if rows:
            parts += [f"### {heading}", result_table(rows, by_experiment=True)]
            parts += [test_table(tests, by_experiment=True)] * bool(tests)
    if reading:
        parts += ["### Reading", reading]
    return "\n\n".join([*parts, _origin(found)])


def run_table(found: Entry) -> str:
    """The experiments, what they change, and how far each has come."""
    lines = []
    for experiment in [*found["experiments"], {"name": "baselines", "why": "classical models on the same candidates",
                                               "set": {}}]:
        own = [entry for entry in found["status"] if entry["experiment"] == experiment["name"]]
        if not own:
            continue
        changed = ", ".join(f"`{name}: {value}`" for name, value in experiment["set"].items()) or "-"
        status = {kind: [entry["seed"] for entry in own if entry["status"] == kind]
                  for kind in ("done", "failed", "not run")}
        told = "; ".join(f"{kind}: {listed(seeds)}" for kind, seeds in status.items() if seeds)
        reasons = dict.fromkeys(entry["reason"] for entry in own if "reason" in entry)
        hours = sum(entry.get("seconds", 0) for entry in own) / 3600
        cpus = sorted({entry["cpus"] for entry in own if "cpus" in entry})
        lines.append([experiment["name"], experiment["why"], changed,
                      "; ".join([told, *reasons]), f"{hours:.2f}" + (f" on {listed(cpus)} CPU" if cpus else "")])
    return table(["experiment", "what it is to show", "settings changed", "seeds", "hours of the last start"], lines,
                 right=1)


def result_table(rows: Sequence[Entry], *, by_experiment: bool = False) -> str:
    """Systems, mean ± standard deviation over seeds; of those on the same queries the best of each metric is bold."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for row in rows:
        key = (row["experiment"], row["system"], row["negatives"], row["split"])
        groups.setdefault(key, []).append(row)
    same: dict[tuple[Any, ...], list[Sequence[Entry]]] = {}
    for own in groups.values():
        same.setdefault(_queries(own), []).append(own)
    lines = []
    for (experiment, system, negatives, split), own in groups.items():
        others = same[_queries(own)]
        cells = [spread(own, name, bold=len(others) > 1
                        and _mean(own, name) >= max(_mean(other, name) for other in others) - 1e-12)
                 for name in METRICS]
        written = [row for row in own if row["method"] == "generate"]
        cells += [spread(written, name, ".1f" if name == "tokens_per_answer" else ".3f") for name in RATES]
        users = sorted({row["users"] for row in own})
        answers = sorted({row.get("answers", 1) for row in own})
        asked = listed(users) + f" x {listed(answers)} answers" * (answers != [1])
        lines.append([*([experiment] if by_experiment else []), system, *cells, negatives, split,
                      listed(sorted(row["seed"] for row in own)), asked])
    head = [*(["experiment"] if by_experiment else []), "system", *METRICS.values(), *RATES.values(), "negatives",
            "split", "seeds", "users a seed"]
    return table(head, lines, right=len(head) - 1 - by_experiment)


def _queries(rows: Sequence[Entry]) -> tuple[Any, ...]:
    """What must be equal for rows to be of the same queries."""
    return tuple(sorted({(row["dataset"], row["negatives"], row["split"], row["users"], row.get("split_seed"))
                         for row in rows}, key=str))


def test_table(tests: Sequence[Entry], *, by_experiment: bool = False) -> str:
    """Differences between systems."""
    lines = []
    for test in tests:
        real = test["p_holm"] < ALPHA
        verdict = "no" if not real else "yes, better" if test["difference"] > 0 else "yes, worse"
        own, other = test["experiments"]
        lines.append([*[own] * by_experiment,
                      f"{test['system']} minus {test['minus']}" + f" of {other}" * (by_experiment and other != own),
                      METRICS[test["metric"]], f"{test['mean']:.3f}", f"{test['mean_minus']:.3f}", interval(test),
                      probability(test["p"]), probability(test["p_holm"]), verdict,
                      ", ".join(f"{value:+.3f}" for value in test["by_seed"]) if len(test["seeds"]) > 1 else "-",
                      str(test["users"]), str(test["pairs"]), listed(test["seeds"])])
    return table([*["experiment"] * by_experiment, "difference", "metric", "first", "second",
                  "difference [95% interval]", "p", "Holm", "real?", "by seed", "people", "questions", "seeds"], lines,
                 right=11)


def ratio_line(found: Entry) -> str:
    """The paper's headline: how many times the base's HitRatio@1; nothing of a base that cannot answer."""
    lines = []
    for test in found["significance"]:
        base = role(test["minus"]) in ("base", "pretrained", "base-likelihood", "pretrained-likelihood")
        if test["metric"] == "hr@1" and base and test["system"] == "sft+grpo":
            rates = [row["valid_rate"] for row in main_rows(found)
                     if row["system"] == test["minus"] and row["method"] == "generate"]
            if not test["mean_minus"] or (rates and np.mean(rates) < READABLE):
                lines.append(f"{test['minus']} writes hardly an answer that can be read, so a multiple of its"
                             " HitRatio@1 means nothing")
            else:
                lines.append(f"sft+grpo has {test['mean'] / test['mean_minus']:.2f} times the HitRatio@1 of "
                             f"{test['minus']}")
    return "; ".join(lines) + (" (the paper: 2.3 times its base, in the mean of its data sets)." if lines else "")


def _breakdowns(found: Entry) -> list[str]:
    rows = found["breakdowns"]
    stretches = position_stretches(rows)
    places = [[row["system"], *(_rate(rate) for rate in position_rates(row, stretches)), probability(row["position_p"])]
              for row in rows]
    parts = [_conditions(found) + " HitRatio@1 by the true item's place in the list (p: could the rates at all places "
             "be equal?):",
             table(["system", *(f"{low} to {high}" for low, high in stretches), "p"], places, right=5)]
    counted = [row for row in rows if row["by_popularity"]]
    if counted:
        buckets = max((row["by_popularity"] for row in counted), key=len)
        lines = [[row["system"], *(_rate(bucket["hr@1"]) for bucket in row["by_popularity"])] for row in counted]
        parts += ["HitRatio@1 by how often the true item was rated in training (equal numbers of people):",
                  table(["system", *("{} to {}".format(*b["edges"]) for b in buckets)], lines, right=len(buckets))]
    if found["diagnostics"]:
        parts += ["The same model with other chains in its prompts (p is not corrected). If another's chains do as "
                  "well as its own, it does not use what they say:", chains_table(found["diagnostics"])]
    return parts


def chains_table(diagnostics: Sequence[Entry]) -> str:
    """Own, foreign and no chains, and the test of what is lost."""
    lines = []
    for entry in diagnostics:
        test = next((t for t in entry["tests"] if t["metric"] == "hr@1"), None)
        lost = ["-"] * 3 if test is None else [interval(test), probability(test["p"]), listed(test["seeds"])]
        lines.append([entry["experiment"], entry["system"], CHAINS[entry["chains"]],
                      *(f"{entry[name]:.3f}" for name in METRICS), *lost, str(entry["users"])])
    return table(["experiment", "system", "chains", *METRICS.values(), "HitRatio@1 against its own", "p", "seeds",
                  "questions"], lines, right=8)


def _mean(rows: Sequence[Entry], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _conditions(found: Entry) -> str:
    rows = [row for row in found["rows"] if row["headline"]]
    sets = {name: listed(sorted({row[name] for row in rows})) for name in ("dataset", "negatives", "split", "seed",
                                                                          "users")}
    seeds = f"seeds {sets['seed']} together" if len({row["seed"] for row in rows}) > 1 else f"seed {sets['seed']}"
    return (f"{sets['dataset']}, {sets['negatives']} negatives, split {sets['split']}, {seeds}, {sets['users']} users "
            "a seed.")


def _origin(found: Entry) -> str:
    commits = dict.fromkeys(map(_version, found["runs"]))
    trained = dict.fromkeys(_version(stage) for run in found["runs"] for stage in run.get("trained", {}).values())
    others = [version for version in trained if version not in commits]
    stages = f" (stages trained by {', '.join(others)})" if others else ""
    return (f"*`evidence_{found['name']}.json`, {found['created']}; runs of commit {', '.join(commits)}{stages} on "
            f"{found['hardware']}.*")


def _version(entry: Entry) -> str:
    return entry["commit"][:12] + (" with changes" if entry["dirty"] else "")
