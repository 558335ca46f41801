"""``python -m r2rec_jax.score``: token log-probabilities of a text, to hold our model against another implementation.

    python -m r2rec_jax.score --backbone smollm2-135m --text-file text.txt --json scores.json
    python -m r2rec_jax.score --backbone ./Llama --adapter runs/x/export/peft --text-file text.txt --json scores.json
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
    from r2rec_jax.tokens.tokenizer import Tokenizer

DESCRIPTION = """Score a text under a Llama, with or without an adapter.
The output is {"token_ids": [...], "logprobs": [null, ...]}: logprobs[i] is log p(token i | tokens before it) in nats at
temperature 1 over the whole vocabulary, and null for the first token. The text is taken as it is and tokenised as
transformers' tokenizer(text) does: special tokens written in it are recognised, and a beginning-of-sequence token is
put first where the tokenizer adds one. Weights and arithmetic are float32 unless --dtype says otherwise."""


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

    def score(lora: nnx.State, base: nnx.State, tokens: jax.Array) -> jax.Array:
        model = merge_llama(backbone.graphdef, lora, base)
        row = tokens[None, :-1]
        positions = jnp.arange(row.shape[1])[None]
        hidden = model.hidden_states(row, positions, jnp.ones_like(row), jnp.zeros_like(row), attention="xla")
        logprobs, _ = row_logprobs(hidden, positions, tokens[None, 1:], model.head())
        return logprobs[0]

    with jax.default_matmul_precision("highest"):
        adapter = backbone.lora if lora is None else lora
        logprobs = jax.jit(score)(adapter, backbone.base, jnp.asarray(token_ids, jnp.int32))
    return [None, *(float(value) for value in logprobs)]


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


def _open(arguments: Any) -> tuple[Backbone, nnx.State | None, Tokenizer]:
    from r2rec_jax.models.huggingface import load_backbone
    from r2rec_jax.models.peft import load_adapter, read_adapter_config
    from r2rec_jax.stages.workspace import backbone_path
    from r2rec_jax.tokens.tokenizer import Tokenizer

    lora_config = None if arguments["adapter"] is None else read_adapter_config(arguments["adapter"])
    path = backbone_path(arguments["backbone"], arguments["cache_dir"])
    backbone = load_backbone(path, lora_config, arguments["dtype"])
    lora = None if arguments["adapter"] is None else load_adapter(arguments["adapter"], backbone)[0]
    return backbone, lora, Tokenizer.load(path if arguments["tokenizer"] is None else arguments["tokenizer"])


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
    parser.add_argument("--cache-dir", type=str, default="~/.cache/r2rec_jax", help="where downloads are kept")
    arguments = parse(parser, argv)
    if arguments["backbone"] == "tiny":
        raise BadInput("--backbone must be a checkpoint; 'tiny' is trained in a run: give its pretrain/backbone folder")
    text = read_text(arguments["text_file"])
    backbone, lora, tokenizer = _open(arguments)
    token_ids = tokenizer.encode_document(text)
    write_json(arguments["json"], {"token_ids": token_ids, "logprobs": score_ids(backbone, lora, token_ids)})


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_entry(run, argv)


if __name__ == "__main__":
    sys.exit(main())
