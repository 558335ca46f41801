"""The command line that the entries share: YAML and flags to a TrainConfig, failures to one line.

jsonargparse merges a default configuration file under ``--config``, so the packaged quickstart is used only when no
``--config`` is given at all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from r2rec_jax import files, stopping
from r2rec_jax.config import TrainConfig, dotted
from r2rec_jax.parallel.kept import keep_compiled
from r2rec_jax.reasons import one_line

T = TypeVar("T")

EXIT_BAD_INPUT = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

OUT_OF_MEMORY = ("; lower sft.micro_batch, grpo.micro_prompts or evaluate.batch_size, whichever stage this was; train "
                 "--plan shows what each takes, and XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 lets JAX use all of a GPU")
"""What helps where a device has no room, behind XLA's own words."""


class BadInput(ValueError):
    """Wrong arguments, with a one-line reason."""


def make_parser(prog: str, description: str) -> Any:
    """An ArgumentParser that raises instead of exiting, so that every failure is printed the same way."""
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"python -m {prog}", description=description, exit_on_error=False,
                          allow_abbrev=False)


def add_train_config(parser: Any) -> None:
    """Add ``--config`` and one flag for every setting of :class:`TrainConfig`."""
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below; "
                        "without it the packaged quickstart is used")
    parser.add_class_arguments(TrainConfig, as_group=False)


def parse(parser: Any, argv: Sequence[str] | None) -> Any:
    """Parse arguments; a mistake becomes :class:`BadInput` with jsonargparse's own reason on one line."""
    from jsonargparse import ArgumentError

    try:
        return parser.parse_args(argv)
    except ArgumentError as error:
        raise BadInput(one_line(error, None)) from None


def parse_train_config(parser: Any, argv: Sequence[str] | None) -> tuple[TrainConfig, Any]:
    """(the run's configuration, the entry's own arguments), the quickstart filled in when no ``--config`` is given.

    Raises:
        BadInput: a file or a flag is wrong, see :func:`parse` and :func:`check_sections`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not any(a == "--config" or a.startswith("--config=") for a in arguments):
        arguments = ["--config", str(resources.files("r2rec_jax") / "quickstart.yaml"), *arguments]
    parsed = parse(parser, arguments)
    for path in filter(None, parsed.config):  # a value that a later file or flag replaces too
        check_sections(TrainConfig, yaml.safe_load(Path(path).read_text(encoding="utf-8")), str(path))
    check_sections(TrainConfig, parsed.as_dict(), "the command line")
    made = parser.instantiate(parsed)
    names = TrainConfig.__dataclass_fields__
    return TrainConfig(**{k: v for k, v in made.items() if k in names}), made


def section_names(kind: type[Any]) -> Iterator[str]:
    """Dotted names of a dataclass's fields that are dataclasses, those within others too: ``data``, ``data.table``."""
    types = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(types[field.name]):
            yield field.name
            yield from (f"{field.name}.{inner}" for inner in section_names(types[field.name]))


def check_sections(kind: type[Any], plain: Any, what: str) -> None:
    """Make sure that every section of settings is one; jsonargparse takes defaults for what is none, or breaks.

    A text passes, for jsonargparse reads the file of that name as the section, or has refused it.

    Args:
        kind: the dataclass whose sections they are.
        plain: nested mappings, as read.
        what: where they were read, the refusal begins with it.

    Raises:
        BadInput: a section is null, a number, a list (names it).
    """
    sections = set(section_names(kind))
    for name, value in dotted(plain).items():
        if name in sections and value != {} and not isinstance(value, str):
            raise BadInput(f"{what}: {name} must be a section of settings; got {json.dumps(value, default=str)}; "
                           "leave it out for the defaults")


def from_plain(kind: type[T], plain: Any, what: str) -> T:
    """A dataclass from plain values; what it does not know or take is a :class:`BadInput` that begins with ``what``."""
    from jsonargparse import ArgumentError

    check_sections(kind, plain, what)
    parser = make_parser("r2rec_jax", "")
    parser.add_class_arguments(kind, as_group=False)
    try:
        made = parser.instantiate(parser.parse_object(plain))
    except ArgumentError as error:
        raise BadInput(f"{what}: {one_line(error, None)}") from None
    return kind(**{field.name: made[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def write_json(path: str | None, value: Any) -> None:
    """Write what ``--json OUT`` asks for; nothing when it was not given."""
    if path is not None:
        files.write_json(path, value)


def run_entry(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Call an entry's body; turn a failure that the user can mend into one line on standard error.

    Returns:
        0 when it went well or the system asked it to stop (SIGTERM, SIGUSR1, SIGHUP), 1 for a run that had to stop,
        2 for bad input or a failing file system, 130 after Ctrl-C.
    """
    from r2rec_jax.evaluation.tables import own_code

    try:
        with stopping.listening(last=argv is None):
            if argv is None:  # a process of its own
                keep_compiled()
                own_code()
            main(argv)
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("R2REC_TRACEBACK"):
            raise
        print(f"error: {one_line(error, None)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except RuntimeError as error:
        if os.environ.get("R2REC_TRACEBACK"):
            raise
        advice = OUT_OF_MEMORY if "RESOURCE_EXHAUSTED" in str(error) else ""
        print(f"error: {one_line(error, None)}{advice} (R2REC_TRACEBACK=1 shows where)", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt as request:
        number = request.number if isinstance(request, stopping.Interrupted) else signal.SIGINT
        print(f"stopped by {signal.Signals(number).name}; run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED if number == signal.SIGINT else 0
    return 0
