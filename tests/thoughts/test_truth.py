"""What is true of a prompt: all that the template says of it, in whatever words, and nothing that it could not say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from r2rec_jax.config import AnswerConfig, DataConfig, PromptConfig, TrainConfig
from r2rec_jax.prompts.verbalize import item_labels
from r2rec_jax.stages.prepare import prepare
from r2rec_jax.stages.prepared import Prepared
from r2rec_jax.stages.rendering import make_view
from r2rec_jax.thoughts.target import RankingTarget, write_ranking_target
from r2rec_jax.thoughts.teacher import every_phrasing
from r2rec_jax.thoughts.template import TemplateTeacher
from r2rec_jax.thoughts.truth import Truth, count_true, truth_of, truth_share


@pytest.fixture(scope="module")
def prepared(ml100k_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    data = DataConfig(path=str(ml100k_dir), eval_users=60, validation_users=10, sft_queries=60, rl_queries=10)
    return prepare(TrainConfig(data=data), tmp_path_factory.mktemp("truth") / "prepare")


def written(prepared: Prepared, number: int, config: PromptConfig, key: str) -> RankingTarget:
    query = prepared.queries["sft"][number]
    view = make_view(prepared, query, config)
    teacher = TemplateTeacher("movies", varied=config.wording == "varied")
    return write_ranking_target(view, teacher.write_many(view.chains, [key] * len(view.chains)),
                                query.candidates.index(query.target), [0.0] * len(query.candidates), config, key)


def truths(prepared: Prepared, number: int, config: PromptConfig) -> Truth:
    return truth_of(make_view(prepared, prepared.queries["sft"][number], config), config)


@pytest.mark.parametrize("config", [
    PromptConfig(), PromptConfig(detail="brief"), PromptConfig(wording="fixed"), PromptConfig(facts=False),
    PromptConfig(detail="brief", wording="fixed", facts=False, liked=10, order="oldest-first",
                 answer=AnswerConfig(form="titles", top=3)),
    PromptConfig(chains=False), PromptConfig(facts=False, names="label", detail="brief")],
    ids=["hops", "brief", "fixed", "no-facts", "tiny", "no-chains", "labels"])
def test_what_the_template_writes_is_true(prepared: Prepared, config: PromptConfig) -> None:
    for number in range(len(prepared.queries["sft"])):
        known = truths(prepared, number, config).statements.keys()
        for key in "abcdef":
            *told, conclusion = written(prepared, number, config, key).statements
            assert known >= set(told) and conclusion not in known


def test_every_phrasing_is_known_and_nothing_else(prepared: Prepared) -> None:
    for config in (PromptConfig(detail="brief"), PromptConfig()):
        for number in (3, 4):
            said = {statement for key in map(str, range(400))
                    for statement in written(prepared, number, config, key).statements[:-1]}
            assert truths(prepared, number, config).statements.keys() == said


def test_a_statement_with_more_phrasings_than_are_gone_through_is_told() -> None:
    with pytest.raises(ValueError, match=r"MOST_PHRASINGS must be >= 6, the options of 'years'; got 5"):
        every_phrasing()[0]("abcdef", "years")


def test_invented_statements_are_not_true(prepared: Prepared) -> None:
    config = PromptConfig(detail="brief", liked=10)
    other = changed = 0
    for number in range(20):
        known = truths(prepared, number, config).statements
        for statement in written(prepared, number, config, "k").statements[:-1]:
            other += statement in truths(prepared, number + 20, config).statements
            figure = re.search(r"\d+", statement)
            if figure:
                wrong = statement[:figure.start()] + str(int(figure[0]) + 1) + statement[figure.end():]
                changed += 1
                assert wrong not in known
    assert changed > 20 and other <= 5, "hardly a statement holds of another user"


def test_counting_in_a_completion(prepared: Prepared) -> None:
    config = PromptConfig(detail="brief", answer=AnswerConfig(form="titles", top=3))
    query = prepared.queries["sft"][0]
    view, known = make_view(prepared, query, config), truths(prepared, 0, config)
    labels: Sequence[str] = item_labels(view.candidates)
    target = written(prepared, 0, config, "k")
    shown = replace(config, thoughts="prompt")
    assert truths(prepared, 0, shown).statements == known.statements, "what stands in the prompt is no less true"
    for opened in (False, True):
        text = target.completion(view, config, opened_think=opened)
        count = len(target.statements) - 1
        assert count_true(text, known, labels, opened_think=opened) == (count, count)
        lied = replace(target, statements=("They never liked anything at all.", *target.statements[1:]))
        assert count_true(lied.completion(view, config, opened_think=opened), known, labels,
                          opened_think=opened) == (count, count - 1)
    assert count_true("<answer>nothing</answer>", known, labels, opened_think=False) == (0, 0)


@pytest.mark.parametrize("config", [
    PromptConfig(), PromptConfig(detail="brief", wording="fixed", facts=False), PromptConfig(thoughts="prompt"),
    PromptConfig(thoughts="none"), PromptConfig(chains=False)], ids=["hops", "brief", "in-prompt", "none", "no-chains"])
def test_what_the_template_writes_has_the_whole_reward(prepared: Prepared, config: PromptConfig) -> None:
    less = 0
    for number in range(len(prepared.queries["sft"])):
        query, truth = prepared.queries["sft"][number], truths(prepared, number, config)
        view = make_view(prepared, query, config)
        text = written(prepared, number, config, "k").completion(view, config, opened_think=False)
        less += truth_share(text, truth, item_labels(view.candidates), opened_think=False) < 1
    assert less <= 2, "but for one that would name its answer too early"


def test_leaving_out_and_inventing_cost_the_same() -> None:
    said = ("They like crime films most.", "User 7 agrees with the target on both.")
    again = "Most of all they like crime films."
    truth = Truth({said[0]: frozenset({0}), again: frozenset({0}), said[1]: frozenset({0, 1})}, 2)
    wrong, conclusion = "User 7 agrees on neither of them.", "Among the candidates, Heat fits best."

    def share(*statements: str) -> float:
        return truth_share("<think>" + "\n".join(statements) + "</think><answer>1</answer>", truth, ["Heat", "Big"],
                           opened_think=False)

    assert share(*said, conclusion) == share(*said) == 1, "the conclusion is an opinion"
    assert share(said[0], conclusion) == share(said[0], wrong, conclusion) == share(said[0], said[0]) == 0.5
    assert share(*said, wrong) == pytest.approx(2 / 3)
    assert share(said[0], again, conclusion) == 0.5, "one fact in two phrasings"
    assert share(*said, conclusion, "Of all candidates, nobody hated Heat.") == pytest.approx(2 / 3), "one conclusion"
    assert share(wrong) == share(conclusion) == share() == 0
    assert truth_share("", Truth({}, 0), [], opened_think=False) == 1, "nothing to say"
    assert truth_share(f"<think>{wrong}</think>", Truth({}, 0), [], opened_think=False) == 0


@pytest.mark.parametrize("config", [PromptConfig(), PromptConfig(detail="brief")], ids=["hops", "brief"])
def test_a_phrasing_more_is_no_fact_more(prepared: Prepared, config: PromptConfig) -> None:
    """Every way to say what may be said of the likes says nothing about the chains."""
    for number in range(10):
        query, truth = prepared.queries["sft"][number], truths(prepared, number, config)
        labels = item_labels(make_view(prepared, query, config).candidates)
        whole, likes = truth.statements, truths(prepared, number, replace(config, chains=False)).statements
        told = [line for line in whole if line in likes]
        facts = frozenset[int]().union(*(whole[line] for line in told))
        made, true = count_true("<think>" + "\n".join(told) + "</think>", truth, labels, opened_think=False)
        assert made == len(told) and true == len(facts) < truth.expected, "the chains are missing"
    assert len(told) > len(facts), "a prompt with facts in more than one phrasing"
