"""Hosted models as rankers: ``evaluate --endpoint``, on the frozen candidates of a run or of a prepared folder.

They get the prompts that every other system gets, and their answers are judged by the same parser. Each answer is on
disk before the next one is looked at; answers of other settings are refused, not replaced, since they were paid for.

    <run>/hosted/predictions-<lists>-<system>.jsonl, requests-<lists>-<system>.jsonl, results-<lists>-<system>.json
    <out>/predictions-..., requests-..., ranks-<split>-<negatives>.jsonl, result.json      over a prepared folder
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from r2rec_jax.config import EndpointConfig, EvaluateConfig, PromptConfig, TrainConfig, as_plain, fingerprint
from r2rec_jax.data.queries import Query, split_name
from r2rec_jax.evaluation.predictions import Prediction, PredictionLog, read_predictions
from r2rec_jax.evaluation.protocol import EvaluationQuery, judge, summarize
from r2rec_jax.evaluation.ranking import hit_ratio
from r2rec_jax.evaluation.ranks import edges_of_targets, from_predictions, write_ranks
from r2rec_jax.evaluation.tables import result_file
from r2rec_jax.files import read_json, write_json
from r2rec_jax.progress import bar, say
from r2rec_jax.prompts.ranking import render_ranking
from r2rec_jax.prompts.templates import TEMPLATE_VERSION
from r2rec_jax.sampling.endpoint import Endpoint, Stopped
from r2rec_jax.stages.endpoint import GO_ON, locked_folder
from r2rec_jax.stages.looks import LOOK, add_look, given_look
from r2rec_jax.stages.rendering import make_view
from r2rec_jax.thoughts.remote import completion_text

if TYPE_CHECKING:
    from r2rec_jax.stages.prepared import Prepared
    from r2rec_jax.stages.workspace import Workspace

SETTING = "--server"
"""How the command line calls the endpoint's settings."""


@dataclass(frozen=True)
class HostedExam:
    """What a hosted model is asked.

    Attributes:
        prepared: the data, with the candidate lists that are asked.
        config: which queries, and how they are sampled.
        prompts: what the prompts show.
        queries: the frozen queries, rendered.
        folder: where predictions and results go.
        lists: how files call the candidate lists: ``test``, ``test-popularity``.
        identity: what else decides a prompt (keys of stages or names of frozen files).
        seed: the run's training seed.
        of_run: the folder is that of a run's hosted models; else it is the system's.
    """

    prepared: Prepared
    config: EvaluateConfig
    prompts: PromptConfig
    queries: Sequence[EvaluationQuery]
    folder: Path
    lists: str
    identity: Sequence[Any]
    seed: int
    of_run: bool


def exam_of_run(work: Workspace, config: EvaluateConfig) -> HostedExam:
    """The prompts that the run's own systems get, word for word."""
    from r2rec_jax.stages.evaluation import evaluation_queries, lists_name, negatives_of
    from r2rec_jax.stages.rendering import render_queries
    from r2rec_jax.stages.run import HOSTED, prompts_identity
    from r2rec_jax.stages.thinking import shown_thoughts

    queries = evaluation_queries(work, config)
    rendered = render_queries(work.prepared, queries, work.config.prompts, work.tokenizer,
                              shown_thoughts(work, queries))
    negatives = negatives_of(work, config)
    prepared = work.prepared if config.negatives is None else work.prepared.with_negatives(negatives)
    asked = [replace(r.for_evaluation(work.prepared), opened_think=False) for r in rendered]
    return HostedExam(prepared, config, work.config.prompts, asked, work.run.folder(HOSTED), lists_name(work, config),
                      prompts_identity(work.run, negatives), work.config.train_seed, True)


def exam_of_prepared(folder: Path, prompts: PromptConfig, config: EvaluateConfig, out: Path) -> HostedExam:
    """Prompts over a prepared folder, without a run: all chains are shown, whatever their length in tokens.

    Raises:
        ValueError: the folder is no prepared one, has none or fewer queries than asked for, or prompts show thoughts.
    """
    from r2rec_jax.stages.prepared import Prepared

    if prompts.thoughts == "prompt":
        raise ValueError("prompts.thoughts must be completion or none with --prepared (a prepared folder has no "
                         "teacher); got 'prompt'; give --run")
    prepared = Prepared.load(folder)
    configured = prepared.negatives
    if config.negatives is not None:
        prepared = prepared.with_negatives(config.negatives)
    queries = prepared.asked(config.split)
    if config.users is not None and config.users > len(queries):
        raise ValueError(f"--users must be <= the {len(queries)} frozen {config.split} queries; got {config.users}")
    asked = [_render(prepared, query, prompts) for query in queries[:config.users]]
    lists = config.split if prepared.negatives == configured else f"{config.split}-{prepared.negatives}"
    manifest = prepared.manifest
    identity = [manifest["queries"], manifest["candidates"], manifest["chains"], as_plain(prompts), prepared.negatives]
    return HostedExam(prepared, config, prompts, asked, out, lists, identity, manifest["config"]["train_seed"], False)


def _render(prepared: Prepared, query: Query, prompts: PromptConfig) -> EvaluationQuery:
    data = prepared.dataset
    prompt = render_ranking(make_view(prepared, query, prompts), prompts)
    return EvaluationQuery(
        query_id=query.query_id, user_id=data.users[query.user_idx].user_id,
        candidates=tuple(data.items[i].item_id for i in query.candidates), titles=prompt.candidates,
        target=query.candidates.index(query.target), prompt=prompt.text, prompt_ids=())


def file_name(system: str) -> str:
    """A system's name as part of a file name.

    Example:
        >>> file_name("Qwen/Qwen2.5-7B"), file_name("../../x")
        ('Qwen-Qwen2.5-7B', 'x')
    """
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", system).strip("-.")
    if not name:
        raise ValueError(f"a system's name must hold a letter or a digit; got {system!r}; give --system")
    return name


def evaluate_endpoint(exam: HostedExam, server: EndpointConfig, system: str) -> dict[str, Any]:
    """Ask a hosted model for every ranking and write its result file; goes on where an earlier start stopped.

    Args:
        exam: what is asked.
        server: the model and how it is reached.
        system: its name in tables.

    Returns:
        The result file's contents; its row holds requests and tokens over all starts.

    Raises:
        ValueError: the folder holds answers of this name under other settings, or another system's results.
        Stopped: the budget is spent or the server answers nobody; all answers so far are kept.
    """
    name = f"{exam.lists}-{file_name(system)}"
    ranks = f"ranks-{exam.config.split}-{exam.prepared.negatives}{'-' + file_name(system) if exam.of_run else ''}.jsonl"
    with locked_folder(exam.folder) as folder:
        if exam.of_run:
            _take_over(folder, name, ranks)
        older = [] if exam.of_run else _older_rows(folder / "result.json", system, exam)
        endpoint = Endpoint(server, folder / f"requests-{name}.jsonl", setting=SETTING)
        predictions = _ask_all(exam, endpoint, system, folder / f"predictions-{name}.jsonl")
        prepared, data = exam.prepared, exam.prepared.data_config
        edges = edges_of_targets(prepared.dataset, prepared.training, prepared.queries[exam.config.split])
        row = summarize(predictions, dataset=data.label, negatives=exam.prepared.negatives, seed=exam.seed,
                        split=split_name(data.split, exam.config.split), target_edges=edges)
        row |= {"split_seed": data.split_seed, "candidates": data.candidates, **asdict(endpoint.spending)}
        settings = {"evaluate": as_plain(exam.config), "prompts": as_plain(exam.prompts), "server": as_plain(server)}
        result = result_file(f"{server.model} on {data.label}", [*older, row], fingerprint(settings), settings=settings,
                             prompts_sha256=fingerprint([query.prompt for query in exam.queries]),
                             identity=fingerprint(list(exam.identity)))
        write_ranks(folder / ranks, from_predictions(predictions, edges))
        write_json(folder / (f"results-{name}.json" if exam.of_run else "result.json"), result)
    return result


def _take_over(folder: Path, name: str, ranks: str) -> None:
    """Move what an earlier version kept of a hosted model in the run's ``evaluate`` folder, where it was not safe."""
    earlier, journal = folder.with_name("evaluate"), f"requests-{name}.jsonl"
    if (earlier / journal).exists() and not (folder / journal).exists():
        for file in (f"predictions-{name}.jsonl", f"results-{name}.json", ranks, journal):
            if (earlier / file).exists():
                (earlier / file).rename(folder / file)
        say(f"{earlier}: answers of {name} were moved to {folder}")


def _older_rows(path: Path, system: str, exam: HostedExam) -> list[Mapping[str, Any]]:
    """Rows of the same system on other candidate lists, which a result file keeps."""
    rows = read_json(path, "move the file away", rows=list)["rows"] if path.exists() else []
    others = sorted({row["system"] for row in rows} - {system})
    if others:
        raise ValueError(f"--out must be a folder of one system; {path} holds {', '.join(others)}; choose another")
    mine = (exam.prepared.negatives, split_name(exam.prepared.data_config.split, exam.config.split))
    return [row for row in rows if (row["negatives"], row["split"]) != mine]


def _ask_all(exam: HostedExam, endpoint: Endpoint, system: str, path: Path) -> list[Prediction]:
    """A prediction for every query, those of earlier starts included."""
    c, server, form = exam.config, endpoint.config, exam.prompts.answer.form
    sampling = [c.temperature, c.top_p] if server.sampling else []
    source = fingerprint("endpoint", server.model, sampling, server.extra, c.max_new_tokens, list(exam.identity),
                         TEMPLATE_VERSION)
    others = sum(p.source != source for p in read_predictions(path)) if path.exists() else 0
    if others:
        raise ValueError(f"{path} must hold answers of these settings; {others} are of another model, data or sampling "
                         "and were paid for; give another --system name, or move the file away")
    log = PredictionLog(path, source)

    async def do(query: EvaluationQuery, hand_over: Callable[[Prediction], None]) -> None:
        answer = await endpoint.ask(query.query_id, query.prompt, max_new_tokens=c.max_new_tokens,
                                    temperature=c.temperature, top_p=c.top_p)
        # A server's reason may quote the prompt, and the example in it would read as an answer.
        output = "" if answer.finish == "refused" else completion_text(answer)
        hand_over(judge(system, source, query, output, answer.tokens_out, answer.finish == "length", answer.seconds,
                        form))

    missing = [query for query in exam.queries if query.query_id not in log.done]
    total = len(exam.queries)
    reason = ""
    with bar(f"evaluate {system}", total=total, unit="users", done=total - len(missing)) as progress:
        try:
            for block in endpoint.work(missing, do):
                if block:
                    log.append(block)
                spent, ranks = endpoint.spending, [p.rank for p in log.all()]
                progress.advance(len(block), **({"hr1": hit_ratio(ranks, 1)} if ranks else {}), retried=spent.retried,
                                 tokens_in=spent.tokens_in, tokens_out=spent.tokens_out)
        except Stopped as stop:
            reason = str(stop)
    left = sum(query.query_id not in log.done for query in exam.queries)
    if left:
        reason = reason or f"{left} questions were left: {endpoint.why_unanswered}"
        raise Stopped(f"{reason}; {total - left} of {total} answers are kept in {path}; {GO_ON}")
    return [p for query in exam.queries for p in log.done[query.query_id]]


DESCRIPTION = """Ask a hosted model for the ranking of every frozen query, of a run (--run) or of a prepared folder
(--prepared), on the candidates and with the prompts that every other system gets. Goes on where an interrupted
evaluation stopped; nothing is paid for twice. The key comes from the environment variable that --server.key_env names.

    python -m r2rec_jax.evaluate --endpoint https://api.openai.com/v1 --model gpt-4o-mini --run runs/paper
        --server.key_env OPENAI_API_KEY
    ... --model o4-mini --server.key_env OPENAI_API_KEY --server.sampling false --max_new_tokens 8192
        --server.limit_field max_completion_tokens
    ... --endpoint http://127.0.0.1:8000/v1 --model my-model --prepared prepared --out runs/my-model"""

_LOOK = {name: LOOK[name] for name in ("split", "negatives", "users", "temperature", "top_p", "max_new_tokens")} | {
    "split": (Literal["test", "validation"], LOOK["split"][1]),
    "max_new_tokens": (int, "answer limit in tokens, hidden reasoning included"),
}


def run(argv: Sequence[str] | None = None) -> None:
    """The entry's body for ``evaluate --endpoint``: parse, ask, print the table."""
    from r2rec_jax.evaluation.tables import print_table
    from r2rec_jax.stages.cli import make_parser, parse, write_json

    parser = make_parser("r2rec_jax.evaluate", DESCRIPTION)
    parser.add_argument("--endpoint", type=str, required=True, metavar="URL", help="address up to /v1")
    parser.add_argument("--model", type=str, required=True, help="the model's name on the server")
    parser.add_argument("--system", type=str | None, default=None, help="its name in tables; the model's by default")
    parser.add_argument("--run", type=str | None, default=None, metavar="DIR", help="folder of a run")
    parser.add_argument("--prepared", type=str | None, default=None, metavar="DIR", help="a prepared folder instead")
    parser.add_argument("--out", type=str | None, default=None, metavar="DIR", help="with --prepared: where answers "
                        "and results go; a folder for this system alone")
    parser.add_argument("--config", type=str | None, default=None, metavar="FILE", help="with --prepared: a run's "
                        "YAML, whose prompts and evaluate settings are used instead of the defaults")
    parser.add_argument("--json", type=str | None, default=None, metavar="OUT", help="write the result file here too")
    add_look(parser, _LOOK)
    parser.add_class_arguments(EndpointConfig, "server", skip={"base_url", "model"})
    given = parse(parser, argv)
    server = EndpointConfig(base_url=given.endpoint, model=given.model, **vars(given.server))
    overrides = {"method": "generate", "chains": "own", "answers": 1} | given_look(given)
    result = _run_exam(given, server, given.system or given.model, overrides)
    print_table(result["rows"], result["what"])
    write_json(given.json, result)


def _run_exam(given: Any, server: EndpointConfig, system: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Find out whose queries are asked, and ask."""
    if (given.run is None) == (given.prepared is None):
        raise ValueError("--endpoint needs either --run DIR or --prepared DIR; got "
                         f"{'both' if given.run is not None else 'neither'}")
    if (given.prepared is None) != (given.out is None):
        raise ValueError("--out goes with --prepared: it names the folder for answers and results; with --run they go "
                         "into the run's own folder")
    if given.run is None:
        settings = _settings_of(given.config)
        exam = exam_of_prepared(Path(given.prepared).expanduser(), settings.prompts,
                                settings.evaluate.look(**overrides), Path(given.out).expanduser())
        return evaluate_endpoint(exam, server, system)
    if given.config is not None:
        raise ValueError("--config goes with --prepared; a run has settings of its own")
    from r2rec_jax.stages.run import RunFolder
    from r2rec_jax.stages.workspace import Workspace

    work = Workspace(RunFolder.existing(given.run))
    with work.run.locked():
        return evaluate_endpoint(exam_of_run(work, work.config.evaluate.look(**overrides)), server, system)


def _settings_of(path: str | None) -> TrainConfig:
    """A run's YAML, or the defaults."""
    if path is None:
        return TrainConfig()
    from r2rec_jax.stages.cli import add_train_config, make_parser, parse_train_config

    parser = make_parser("r2rec_jax.evaluate", "")
    add_train_config(parser)
    return parse_train_config(parser, ["--config", path])[0]
