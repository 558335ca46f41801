"""``python -m r2rec_jax.baselines``: train and judge the classical recommenders.

    python -m r2rec_jax.baselines --models all --data ml-1m --data_path ~/ml-1m --seeds 0 1 2
    python -m r2rec_jax.baselines --models popularity,ease --data ml-100k
    python -m r2rec_jax.baselines --models sasrec --data configs/amazon_books_8b.yaml --sasrec.lr 5e-4
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from r2rec_jax.baselines.classical import NAMES, check_names, config_class
from r2rec_jax.config import DataConfig, TrainConfig
from r2rec_jax.config.check import check_seed
from r2rec_jax.stages.cli import add_train_config, make_parser, parse, parse_train_config, run_entry, write_json

DESCRIPTION = f"""Train classical recommenders on training edges, keep the epoch that is best on the validation targets,
and rank the test targets among all three kinds of negatives and the whole catalogue. Models: {', '.join(NAMES)}.
A finished model is not run again; a stopped one goes on from its last checkpoint. One result file a model and seed;
python -m r2rec_jax.evaluate --compare OUT shows them as one table."""

EVAL_USERS = {"ml-100k": 934}
"""Evaluation users where a data set has fewer than 1,000 eligible ones."""


def data_config(data: str, path: str | None, eval_users: int | None) -> DataConfig:
    """The data settings that the command line asks for.

    Args:
        data: name of a data set that needs no other setting, or a YAML file with a ``data`` section.
        path: folder of the original files; None leaves the setting as it is.
        eval_users: None takes the file's own, or 1,000 (934 for MovieLens-100K, which has no more).
    """
    if data.endswith((".yaml", ".yml")):
        parser = make_parser("r2rec_jax.baselines", "")
        add_train_config(parser)
        read: TrainConfig = parse_train_config(parser, ["--config", data])[0]
        config = read.data if eval_users is None else replace(read.data, eval_users=eval_users, validation_users=0)
    else:
        users = EVAL_USERS.get(data, 1000) if eval_users is None else eval_users
        config = DataConfig(name=_data_name(data), eval_users=users, validation_users=0)
    return config if path is None else replace(config, path=path)


def _data_name(name: str) -> Any:
    """A name that ``DataConfig`` has, checked by jsonargparse as on every other command line."""
    parser = make_parser("r2rec_jax.baselines", "")
    parser.add_class_arguments(DataConfig, "data")
    return parse(parser, [f"--data.name={name}"]).data.name


def model_names(text: str) -> list[str]:
    """``all``, or names separated by commas, in the order given.

    Raises:
        ValueError: an unknown or a repeated name, or none.
    """
    names = list(NAMES) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    check_names(names, "--models, where it is not all,")
    return names


def _group(name: str) -> str:
    return name.replace("-", "_")


def run(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, train, judge, print the table."""
    parser = make_parser("r2rec_jax.baselines", DESCRIPTION)
    parser.add_argument("--models", type=str, required=True, help="all, or names separated by commas")
    parser.add_argument("--data", type=str, required=True, help="ml-100k, ml-1m, amazon-books, amazon-electronics, or "
                        "a YAML file whose data section is taken")
    parser.add_argument("--data_path", type=str | None, default=None, metavar="DIR", help="the original files")
    parser.add_argument("--eval_users", type=int | None, default=None, help="evaluation users; when not "
                        "given the YAML file's own, or 1000 (934 for ml-100k)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="split seed and train seed of each run")
    parser.add_argument("--out", type=str, default="runs/baselines", metavar="DIR", help="folder of the models")
    parser.add_argument("--results", type=str, default="results", metavar="DIR", help="folder of the result files")
    parser.add_argument("--overwrite", action="store_true", help="run anew what was made with other settings")
    parser.add_argument("--json", type=str | None, default=None, metavar="OUT", help="write all rows here too")
    for name in NAMES:
        parser.add_class_arguments(config_class(name), _group(name))
    given = parse(parser, argv)
    made = parser.instantiate(given)
    models = model_names(given.models)
    if len(set(given.seeds)) != len(given.seeds):
        raise ValueError(f"--seeds must be distinct; got {given.seeds}")
    for seed in given.seeds:
        check_seed("--seeds", seed)

    from r2rec_jax.evaluation.tables import print_table
    from r2rec_jax.stages.baselines import BaselineConfig, run_baselines

    results = run_baselines(BaselineConfig(
        data=data_config(given.data, given.data_path, given.eval_users), models=models, seeds=given.seeds,
        out=given.out, results=given.results, settings={name: made[_group(name)] for name in models},
        overwrite=given.overwrite))
    rows = [row for result in results for row in result["rows"]]
    for negatives in dict.fromkeys(row["negatives"] for row in rows):
        print_table([row for row in rows if row["negatives"] == negatives], "baselines")
    write_json(given.json, {"rows": rows})


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_entry(run, argv)


if __name__ == "__main__":
    sys.exit(main())
