"""``python -m r2rec_jax.score``: token log-probabilities of a text, to hold our model against another implementation.

    python -m r2rec_jax.score --backbone smollm2-135m --text-file text.txt --json scores.json
    python -m r2rec_jax.score --backbone ./Llama --adapter runs/x/export/peft --text-file text.txt --json scores.json
    python -m r2rec_jax.score --backbone ./Llama --quantize int8 --text-file text.txt --json drift.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from r2rec_jax.stages.cli import BadInput, make_parser, parse, run_entry, write_json

if TYPE_CHECKING:
    from flax import nnx

    from r2rec_jax.models.huggingface import Backbone
    from r2rec_jax.models.quantize import Quantize

DESCRIPTION = """Score a text under a Llama, with or without an adapter.
The output is {"token_ids": [...], "logprobs": [null, ...]}: logprobs[i] is log p(token i | tokens before it) in nats at
temperature 1 over the whole vocabulary, and null for the first token. The text is taken as it is and tokenised as
transformers' tokenizer(text) does: special tokens written in it are recognised, and a beginning-of-sequence token is
put first where the tokenizer adds one. Weights and arithmetic are float32 unless --dtype says otherwise.
With --quantize int8 the scores are those of the quantised weights, and "drift" says how far they are from the scores of
the full weights, which are loaded first and let go."""


def score_ids(backbone: Backbone, lora: nnx.State | None, token_ids: Sequence[int]) -> list[float | None]:
    """Log-probability of each token given those before it, in nats; None for the first.

    Args:
        backbone: the model.
        lora: an adapter; None for the base.
        token_ids: one sequence.

    Raises:
        ValueError: no tokens, more than the model has positions, or an id outside its vocabulary.
    """
    import jax
    import jax.numpy as jnp

    from r2rec_jax.models.layerwise import hidden_states_by_layer
    from r2rec_jax.models.llama import merge_llama
    from r2rec_jax.models.logprobs import row_logprobs

    count, c = len(token_ids), backbone.config
    if not 1 <= count <= c.max_positions:
        raise ValueError(f"a text to score must have 1 to {c.max_positions} tokens (the model's positions); "
                         f"got {count}")
    if max(token_ids) >= c.vocab_size:
        raise ValueError(f"token ids must be below the model's vocabulary of {c.vocab_size}; got {max(token_ids)}; "
                         "give the model's own tokenizer")
    if count == 1:
        return [None]

    def score(lora: nnx.State, base: nnx.State, hidden: jax.Array, targets: jax.Array) -> jax.Array:
        model = merge_llama(backbone.graphdef, lora, base)
        head, vocab_first = model.stored_head()
        return row_logprobs(hidden, jnp.arange(count - 1)[None], targets[None], head, vocab_first=vocab_first,
                            matmul_dtype=model.matmul_dtype)[0][0]

    with jax.default_matmul_precision("highest"):
        adapter = backbone.lora if lora is None else lora
        tokens = jnp.asarray(token_ids, jnp.int32)
        row = tokens[None, :-1]
        hidden = hidden_states_by_layer(backbone.graphdef, adapter, backbone.base, row, jnp.arange(count - 1)[None],
                                        jnp.ones_like(row), jnp.zeros_like(row))
        logprobs = jax.jit(score)(adapter, backbone.base, hidden, tokens[1:])
    return [None, *(float(value) for value in logprobs)]


def drift_of(scores: Sequence[float | None], full: Sequence[float | None]) -> dict[str, float]:
    """How far log-probabilities moved, in nats a token: ``mean`` (signed), ``mean_abs``, ``max_abs``.

    ``drift_of([None, -1.5, -2.0], [None, -1.0, -2.0])`` is mean -0.25, mean_abs 0.25, max_abs 0.5. All are 0 for a text
    of one token, which has no score.
    """
    apart = [a - b for a, b in zip(scores, full, strict=True) if a is not None and b is not None] or [0.0]
    return {"mean": sum(apart) / len(apart), "mean_abs": sum(map(abs, apart)) / len(apart),
            "max_abs": max(map(abs, apart))}


def read_text(path: str | Path) -> str:
    """A UTF-8 file as it is, line ends included.

    Raises:
        ValueError: not UTF-8, or empty.
    """
    try:
        text = Path(path).expanduser().read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text-file must be UTF-8; {path} is not ({error})") from None
    if not text:
        raise ValueError(f"--text-file must hold text; {path} is empty")
    return text


def _load(arguments: Any, path: str | Path, quantize: Quantize) -> tuple[Backbone, nnx.State | None]:
    from r2rec_jax.models.huggingface import load_backbone
    from r2rec_jax.models.peft import load_adapter, read_adapter_config

    adapter = arguments["adapter"]
    lora_config = None if adapter is None else read_adapter_config(adapter)
    backbone = load_backbone(path, lora_config, arguments["dtype"], quantize=quantize)
    return backbone, None if adapter is None else load_adapter(adapter, backbone, other_precision=True)[0]


def run(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, score, write."""
    parser = make_parser("r2rec_jax.score", DESCRIPTION)
    parser.add_argument("--backbone", type=str, required=True,
                        help="folder with config.json and safetensors, .gguf file, hub id, or smollm2-135m")
    parser.add_argument("--adapter", type=str, default=None, help="PEFT adapter folder for that backbone")
    parser.add_argument("--text-file", type=str, required=True, help="the text, UTF-8")
    parser.add_argument("--json", type=str, required=True, metavar="OUT", help="where the scores are written")
    parser.add_argument("--tokenizer", type=str, default=None,
                        help="tokenizer folder, file or hub id, when the backbone brings none")
    parser.add_argument("--dtype", type=Literal["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument("--quantize", type=Literal["none", "int8"], default="none", help="of the layers' linears")
    parser.add_argument("--cache-dir", type=str, default="~/.cache/r2rec_jax", help="where downloads are kept")
    arguments = parse(parser, argv)
    if arguments["backbone"] == "tiny":
        raise BadInput("--backbone must be a checkpoint; 'tiny' is trained in a run: give its pretrain/backbone folder")
    text = read_text(arguments["text_file"])
    from r2rec_jax.stages.workspace import backbone_path
    from r2rec_jax.tokens.tokenizer import Tokenizer

    path = backbone_path(arguments["backbone"], arguments["cache_dir"])
    backbone, lora = _load(arguments, path, "none")
    tokenizer = Tokenizer.load(path if arguments["tokenizer"] is None else arguments["tokenizer"])
    token_ids = tokenizer.encode_document(text)
    result: dict[str, Any] = {"token_ids": token_ids, "logprobs": score_ids(backbone, lora, token_ids)}
    if arguments["quantize"] != "none":
        del backbone, lora
        full = result["logprobs"]
        result["logprobs"] = score_ids(*_load(arguments, path, arguments["quantize"]), token_ids)
        result["drift"] = drift_of(result["logprobs"], full)
        told = "mean {mean:+.4f}, mean absolute {mean_abs:.4f}, largest {max_abs:.4f}".format(**result["drift"])
        print(f"drift by {arguments['quantize']} over {len(token_ids) - 1} tokens, nats a token: {told}")
    write_json(arguments["json"], result)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_entry(run, argv)


if __name__ == "__main__":
    sys.exit(main())
