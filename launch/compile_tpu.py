"""Compile the gradients of the 8B configuration for TPUs on a machine that has none, by libtpu's compiler.

    .venv/bin/pip install 'jax[tpu]'         # libtpu is all that is needed of it
    .venv/bin/python launch/compile_tpu.py

Nothing is run. It shows that the compiler takes the programs, splash attention included, for eight chips of a v5e, by
``fsdp``, by ``fsdp`` and ``tensor`` (a row is then that of two chips), and by ``data`` with heads of 64, and the
temporaries that it lays out, beside the formula of ``--plan``. It says nothing of speed, or of whether the kernels
compute what they should. Writes results/compile_tpu.json; eight minutes beside other programs on two cores.
"""

from __future__ import annotations

import argparse
import os
import time
from importlib.metadata import version
from typing import Any

TOPOLOGY, ACCELERATOR = "v5e:2x4", "v5litepod-8"
CONFIG = "configs/movielens_1m_8b.yaml"
PROMPT, COMPLETION = 768, 684
"""Tokens of a ranking example; GRPO is compiled for completions at their configured limit."""
WORKS = (  # shape, stage, attention, (data, fsdp, tensor)
    # xla takes the tiles that it takes on this machine's CPU
    ("random-135m", "sft", "splash", (8, 1, 1)),
    ("random-8b", "sft", "splash", (1, 8, 1)), ("random-8b", "sft", "xla", (1, 8, 1)),
    ("random-8b", "sft", "splash", (1, 4, 2)),
    ("random-8b", "grpo", "splash", (1, 8, 1)), ("random-8b", "grpo", "xla", (1, 8, 1)),
)


def compiled(shape: str, stage: str, attention: Any, axes: tuple[int, int, int]) -> dict[str, Any]:
    """One program, a row a device, as a row of the result file."""
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from r2rec_jax.bench.presets import SHAPES
    from r2rec_jax.config.parallel import AXES
    from r2rec_jax.parallel.compiling import compile_placed
    from r2rec_jax.parallel.sharding import shardings
    from r2rec_jax.stages.memory import formula
    from r2rec_jax.stages.memory.compiled import gradient_program
    from r2rec_jax.training.policy import FrozenModel

    config = configuration()
    chips = topologies.get_topology_desc(TOPOLOGY, platform="tpu").devices
    mesh = Mesh(np.array(chips).reshape(axes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    shapes = formula.make_shapes(SHAPES[shape], config, dict(mesh.shape), on_cpu=False)
    row = (formula.sft_row(config, PROMPT, COMPLETION) if stage == "sft"
           else formula.grpo_row(config, PROMPT, config.grpo.max_new_tokens))
    remat = formula.recomputes(config, on_cpu=False)
    model = FrozenModel(shapes.graphdef, shapes.base, attention, remat, mesh)
    function, args = gradient_program(model, shapes, config, stage, row, shapes.row_shards)

    def placed(leaf: Any, where: NamedSharding | None) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where or NamedSharding(mesh, PartitionSpec()))

    started = time.monotonic()
    program = compile_placed(function, jax.tree.map(placed, args, shardings(args, mesh)), (1,), mesh)
    memory = program.memory_analysis()
    planned = sum(formula.training_temporaries(shapes, row, 1, remat).values())
    return {"work": f"{stage}: gradient of {shape}, one row of {row.length} tokens a chip",
            "topology": f"{TOPOLOGY} ({chips[0].device_kind})", "attention": attention,
            **dict(zip(AXES, axes, strict=True)), "kernels": program.as_text().count('"tpu_custom_call"'),
            "arguments_gb": round(memory.argument_size_in_bytes / 1e9, 3),
            "temporaries_gb": round(memory.temp_size_in_bytes / 1e9, 3),
            "planned_temporaries_gb": round(planned / 1e9, 3),
            "seconds": round(time.monotonic() - started, 1)}


def configuration() -> Any:
    """The 8B configuration."""
    from r2rec_jax.stages.cli import add_train_config, make_parser, parse_train_config

    parser = make_parser("compile_tpu", "")
    add_train_config(parser)
    return parse_train_config(parser, ["--config", CONFIG])[0]


def main() -> None:
    """Compile all of it and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="results/compile_tpu.json")
    given = parser.parse_args()
    # The machine's own arrays are on its CPU; libtpu looks for no chips and asks no metadata server.
    for name, value in (("JAX_PLATFORMS", "cpu"), ("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"),
                        ("TPU_ACCELERATOR_TYPE", ACCELERATOR), ("R2REC_COMPILED", "off")):
        os.environ.setdefault(name, value)

    from r2rec_jax.config import as_plain, fingerprint
    from r2rec_jax.evaluation.tables import result_file
    from r2rec_jax.files import write_json

    rows = []
    for work in WORKS:
        rows.append(compiled(*work))
        print(rows[-1], flush=True)
    write_json(given.json, result_file("gradients compiled for TPUs by libtpu, never run", rows,
                                       fingerprint(as_plain(configuration())), command="launch/compile_tpu.py",
                                       libtpu=version("libtpu")))


if __name__ == "__main__":
    main()
