"""``evaluate --compare``: from folders of finished systems to tables, tests and breakdowns.

Two kinds of folders are read, or any folder above them:

    run.json, evaluate/ranks-test-<negatives>-<system>.jsonl     a run of ``python -m r2rec_jax.train``, and the hosted
        and hosted/ranks-test-<negatives>-<system>.jsonl         models that were asked its queries
    result.json, ranks-test-<negatives>.jsonl                    a model of ``python -m r2rec_jax.baselines``, or a
                                                                 hosted one of ``evaluate --endpoint``

``evaluate`` settings of a run may change, and ranks outlive that: those that were answered under other settings than
the run has now are left out by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from r2rec_jax import progress
from r2rec_jax.config import TrainConfig, as_plain, fingerprint
from r2rec_jax.config.endpoint import OPERATIONAL
from r2rec_jax.config.output import SHAPING
from r2rec_jax.data.queries import split_name
from r2rec_jax.evaluation.blocks import SystemRun, check_block, gather
from r2rec_jax.evaluation.comparison import BlockReport, report_block
from r2rec_jax.evaluation.paper import TABLE_1, TABLE_2, breaks_the_law, table_order
from r2rec_jax.evaluation.ranks import read_ranks, read_settings_beside
from r2rec_jax.evaluation.tables import result_file
from r2rec_jax.files import read_json, write_json, write_text
from r2rec_jax.reporting.breakdowns import plot_breakdowns
from r2rec_jax.reporting.cells import linked
from r2rec_jax.reporting.comparison import markdown_report
from r2rec_jax.reporting.terminal import print_comparison
from r2rec_jax.stages.cli import make_parser, parse
from r2rec_jax.stages.keys import builds_on, compared_settings
from r2rec_jax.stages.run import HOSTED, RunFolder, prompts_identity
from r2rec_jax.stages.systems import CHECKPOINTS, trained_by

_RANKS = re.compile(r"ranks-test-(uniform|popularity|disliked)-.+\.jsonl")
_TEST_SPLITS = ("last-positive", "global-time")
_SEEDS = ("train_seed", "data.split_seed")


DESCRIPTION = """Compare evaluated systems on the same frozen candidates: the layout of the paper's Table 1 with the
paper's figures beside ours, position bias, popularity of the target, and paired tests (bootstrap over users, Wilcoxon,
Holm's correction) between any two systems. Systems that ranked other candidates are refused by name."""


def run(argv: Sequence[str] | None = None) -> None:
    """``evaluate --compare``: parse the arguments, compare, print, and write what was asked for."""
    parser = make_parser("r2rec_jax.evaluate", DESCRIPTION)
    parser.add_argument("--compare", type=str, nargs="*", required=True, metavar="DIR",
                        help="folders of runs (train) and of baseline models, or above several of them")
    parser.add_argument("--negatives", type=Literal["uniform", "popularity", "disliked"] | None, default=None,
                        help="only candidates of this sampler; all that were evaluated when not given")
    parser.add_argument("--common_users", action="store_true",
                        help="compare on the draws and the users that all systems ranked, where some ranked fewer")
    parser.add_argument("--markdown", type=str | None, default=None, metavar="OUT", help="write the tables here")
    parser.add_argument("--plot", type=str | None, default=None, metavar="OUT",
                        help="draw position bias and popularity here (PNG); --markdown links it")
    parser.add_argument("--json", type=str | None, default=None, metavar="OUT", help="write the result file here")
    given = parse(parser, argv)
    if not given.compare:
        raise ValueError("--compare takes at least one folder; got none; give runs and baseline models")
    reports = compare_folders(given.compare, negatives=given.negatives, common_users=given.common_users)
    print_comparison(reports)
    if given.plot is not None:
        plot_breakdowns(reports, Path(given.plot).expanduser())
    if given.markdown is not None:
        out = Path(given.markdown).expanduser()
        link = None if given.plot is None else linked(Path(given.plot).expanduser(), out.parent)
        write_text(out, markdown_report(reports, link))
    if given.json is not None:
        write_json(given.json, comparison_file(reports))


def compare_folders(folders: Sequence[str], *, negatives: str | None = None, common_users: bool = False
                    ) -> list[BlockReport]:
    """Read every system in the folders, make sure they can be compared, and compare them.

    Args:
        folders: of runs, of baseline models, or above several of them.
        negatives: only candidates of this sampler; all samplers when None.
        common_users: compare on the draws and queries that all systems ranked, instead of refusing those that ranked
            fewer.

    Raises:
        ValueError: a folder holds no evaluated system, a file is damaged, or systems ranked other candidates (named).
    """
    runs = [run for run in find_runs(folders) if negatives in (None, run.negatives)]
    if not runs:
        raise ValueError(f"--negatives must be a sampler that the compared systems were evaluated with; got "
                         f"{negatives!r}, which none of them was")
    blocks = [check_block(block, common_users) for block in gather(runs, table_order)]
    order = {"uniform": 0, "popularity": 1, "disliked": 2}
    blocks.sort(key=lambda block: (block.dataset, block.split, order[block.negatives]))
    reports = []
    for block in blocks:
        progress.say(f"compare: {len(block.systems)} systems on {block.dataset}, {block.negatives} negatives, "
                     f"{block.split}")
        reports.append(report_block(block))
    return reports


def comparison_file(reports: Sequence[BlockReport]) -> dict[str, Any]:
    """The comparison as a result file: rows, the tests of every pair, and the paper's figures."""
    rows = [dict(row) for report in reports for row in report.rows]
    tests = [{"dataset": report.dataset, "negatives": report.negatives, "split": report.split} | asdict(test)
             for report in reports for test in report.tests]
    paper = [{"table": number, **asdict(row), "breaks_the_law": [breaks_the_law(*cell) for cell in row.cells]}
             for number, table in ((1, TABLE_1), (2, TABLE_2)) for row in table]
    return result_file("comparison of " + ", ".join(dict.fromkeys(row["system"] for row in rows)), rows,
                       fingerprint(rows), tests=tests, paper=paper)


def find_runs(folders: Sequence[str]) -> list[SystemRun]:
    """Every evaluated system in the folders, each once.

    Raises:
        ValueError: no such folder, or one without an evaluated system.
    """
    found: dict[Path, list[SystemRun]] = {}
    for given in folders:
        top = Path(given).expanduser()
        if not top.is_dir():
            raise ValueError(f"--compare takes folders of runs or baseline models; {given} is no folder")
        places = _places(top)
        for place in places:
            own = _language_model(place) if (place / "run.json").exists() else _baseline(place)
            if not own and place == top:
                raise ValueError(f"{given} must hold ranks of test queries under its settings; it has none; evaluate "
                                 f"it first (python -m r2rec_jax.evaluate --run {given} --checkpoint ...)")
            if not own:
                progress.say(f"compare: {place} is left out, it holds no ranks of test queries")
            found.setdefault(place.resolve(), own)
        if not any(found[place.resolve()] for place in places):
            raise ValueError(f"{given} must be or hold a run (run.json) or a baseline model (result.json) that was "
                             "evaluated; it holds none")
    return [run for own in found.values() for run in own]


def _places(top: Path) -> list[Path]:
    """The folder itself where it is a run or a model, else those below it."""
    if (top / "run.json").exists() or (top / "result.json").exists():
        return [top]
    return sorted({path.parent for name in ("run.json", "result.json") for path in top.rglob(name)})


def _language_model(folder: Path) -> list[SystemRun]:
    """The systems of a run, and the hosted ones that were asked its queries, that were evaluated on test queries."""
    files = sorted(path for place in ("evaluate", HOSTED) for path in (folder / place).glob("ranks-test-*.jsonl"))
    if not files:
        return []
    run = RunFolder.existing(folder, any_texts=True)
    config, runs = run.config, []
    for path in files:
        match = _RANKS.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path} must be named ranks-test-<negatives>-<system>.jsonl; delete it")
        negatives, records = match.group(1), tuple(read_ranks(path))
        system = records[0].system
        find = _asked_hosted if path.parent.name == HOSTED else _asked
        asked = find(path, run, negatives, system)
        if asked is None:
            continue
        runs.append(SystemRun(
            system=system, variant=_variant(run, system, asked), folder=str(folder), dataset=config.data.label,
            negatives=negatives, split=split_name(config.data.split, "test"), seed=config.train_seed,
            split_seed=config.data.split_seed, records=records,
            prompt=None if "-likelihood" in system else _prompt(config)))
    return runs


def _asked(ranks: Path, run: RunFolder, negatives: str, system: str) -> dict[str, Any] | None:
    """The settings by which a run's own system answered; None where they are not those that the run has now."""
    method = "likelihood" if "-likelihood" in system else "generate"
    own = replace(run.config.evaluate, method=method, chains="own", split="test", likelihood="sum")
    known = read_settings_beside(ranks) or _reported(ranks, run, negatives, system)
    was = ({"answers": 1} if known else {}) | known  # a version that drew one answer did not say so
    other = [f"{name} {was[name]} instead of {getattr(own, name)}" for name in SHAPING[method]
             if name in was and was[name] != getattr(own, name)]
    if other:
        progress.say(f"compare: {ranks} is left out, it was answered under other settings than its run has now "
                     f"({', '.join(other)}); evaluate {system} again")
        return None
    return own.answer_settings("")  # what negatives and what likelihood is known by other names already


def _reported(ranks: Path, run: RunFolder, negatives: str, system: str) -> dict[str, Any]:
    """The settings in the latest result file that has a system's row, for ranks of a version that kept none beside
    them; nothing where there is no such file."""
    policy = system.partition("-likelihood")[0]
    suffix, checkpoint = system.removeprefix(policy), CHECKPOINTS.get(policy, policy)
    files = [_results_beside(ranks, run, negatives, name + suffix) for name in ("", f"-{checkpoint}")]
    results = [read_json(file, "evaluate the system again", rows=list) for file in files if file.exists()]
    mine = [result for result in results if any(row.get("system") == system for row in result["rows"])]
    return max(mine, key=lambda result: result.get("created", "")).get("settings", {}) if mine else {}


def _results_beside(ranks: Path, run: RunFolder, negatives: str, name: str) -> Path:
    lists = "test" if negatives == run.config.data.negatives else f"test-{negatives}"
    return ranks.with_name(f"results-{lists}{name}.json")


def _asked_hosted(ranks: Path, run: RunFolder, negatives: str, _: str) -> dict[str, Any] | None:
    """The settings by which a hosted model answered, from the result file beside its ranks; None where that is not of
    the prompts that the run has now."""
    file = _results_beside(ranks, run, negatives, ranks.stem.removeprefix(f"ranks-test-{negatives}"))
    fix = "run evaluate --endpoint again: it goes on from its answers"
    result = read_json(file, fix, settings=dict) if file.exists() else {}
    if result.get("identity") != fingerprint(prompts_identity(run, negatives)):
        progress.say(f"compare: {ranks} is left out, its run has other prompts or candidates now")
        return None
    settings = result["settings"]
    server = {name: value for name, value in settings["server"].items() if name not in OPERATIONAL}
    asked = {name: settings["evaluate"][name] for name in SHAPING["generate"] if name != "answers"}  # always one
    return asked | {"server": server}


def _variant(run: RunFolder, system: str, asked: Mapping[str, Any]) -> str:
    """Fingerprint of the settings that decide what a system is and how it was asked, its seeds apart."""
    config, plain = run.config, as_plain(run.config)
    policy = system.partition("-likelihood")[0]
    waiting, settings = [trained_by(policy) if policy in CHECKPOINTS else "thoughts"], {}
    while waiting:
        stage = waiting.pop()
        read = compared_settings(plain, stage, run.texts)
        settings |= {name: value for name, value in read.items() if name not in _SEEDS}
        waiting += builds_on(config, stage)
    return fingerprint(system, settings, asked)


def _prompt(config: TrainConfig) -> str | None:
    """What a prompt shows, as the paper's ablation tells them apart; None where it is none of its three kinds."""
    if not config.prompts.chains:
        return "no chains"
    return {"prompt": "chains and thoughts", "none": "chains"}.get(config.prompts.thoughts)


def _baseline(folder: Path) -> list[SystemRun]:
    """A baseline model on every sampler's candidates."""
    result = read_json(folder / "result.json", "delete the folder and run the model again", rows=list)
    rows = result["rows"]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{folder / 'result.json'} must hold the rows of a result file; run the model again")
    runs = []
    for row in rows:
        path = folder / f"ranks-test-{row.get('negatives')}.jsonl"
        if row.get("split") in _TEST_SPLITS and path.exists():
            runs.append(SystemRun(
                system=row["system"], variant=fingerprint(row["system"], result.get("settings")), folder=str(folder),
                dataset=row["dataset"], negatives=row["negatives"], split=row["split"], seed=row["seed"],
                split_seed=row.get("split_seed", row["seed"]), records=tuple(read_ranks(path))))
    return runs
