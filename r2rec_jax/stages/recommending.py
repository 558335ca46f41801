"""One recommendation, for a person to read."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from r2rec_jax.config import TrainConfig
from r2rec_jax.prompts.answer import ANSWER, parse_completion
from r2rec_jax.prompts.verbalize import chain_text, item_text, profile_text
from r2rec_jax.stages.evaluation import make_generate
from r2rec_jax.stages.rendering import RenderedQuery, render_query
from r2rec_jax.stages.systems import system_name
from r2rec_jax.stages.thinking import shown_thoughts
from r2rec_jax.stages.workspace import Workspace


def recommend(work: Workspace, user_id: str, checkpoint: str, top: int) -> dict[str, Any]:
    """Rank a user's candidates.

    Args:
        work: the run.
        user_id: raw id.
        checkpoint: ``base``, ``sft`` or ``grpo``.
        top: how many places are returned.

    Returns:
        JSON-ready: user, checkpoint, profile, liked, chains, no_chains (why the prompt shows none, else empty),
        candidates, ranking (place, item_id, title, is_held_out_item), reasoning, valid, truncated, output (as it was
        written), prompt.

    Raises:
        ValueError: no such user, too few likes for a query, or a run in use whose prompts show thoughts.
    """
    prepared, config = work.prepared, work.config
    query = prepared.find_query(user_id)
    with work.run.locked() if config.prompts.thoughts == "prompt" else nullcontext():  # it may write some
        shown = shown_thoughts(work, [query])
    r = render_query(prepared, query, config.prompts, work.tokenizer, shown)
    answer = make_generate(work, checkpoint, replace(config.evaluate, answers=1))([0], [r.chat.ids], lambda count: None)
    parsed = parse_completion(answer.texts[0], form=config.prompts.answer.form, titles=r.labels,
                              opened_think=r.chat.opened_think)
    items = prepared.dataset.items
    ranking = [{"place": place, "item_id": items[query.candidates[position]].item_id, "title": r.labels[position],
                "is_held_out_item": position == r.target}
               for place, position in enumerate(parsed.ranking[:top], start=1)]
    return {
        "user": user_id, "checkpoint": system_name(work.config, checkpoint), "profile": profile_text(r.view.profile),
        "liked": [item_text(item, facts=False) for item, _ in r.view.liked],
        "chains": [chain_text(chain) for chain in r.chains], "no_chains": no_chains(r, config),
        "candidates": list(r.labels), "ranking": ranking,
        "reasoning": parsed.reasoning.splitlines(), "valid": parsed.valid, "truncated": answer.truncated[0],
        "output": answer.texts[0], "prompt": r.text,
    }


def no_chains(r: RenderedQuery, config: TrainConfig) -> str:
    """Why a prompt shows no chains; nothing where it shows some."""
    if r.chains:
        return ""
    if not (config.prompts.chains and config.graph.chains):
        return f"{'graph' if config.prompts.chains else 'prompts'}.chains is off"
    if r.dropped:
        return "none fits in prompts.max_tokens"
    if r.left_out:
        return "each holds a candidate"
    return "nobody shares two items with this user"


def show(result: dict[str, Any]) -> None:
    """Print a recommendation."""
    console = Console(highlight=False)

    def block(title: str, lines: list[str], empty: str) -> None:
        console.print(Text(title, style="bold"))
        for line in lines or [empty]:
            console.print(Padding(Text(line), (0, 0, 0, 2)))

    console.print(Text(f"User {result['user']}", style="bold") + Text(f"  {result['profile']}"))
    block("Recently liked, newest first", result["liked"], "nothing")
    block("Interaction chains", result["chains"], f"none: {result['no_chains']}")
    written = result["output"].strip()
    unclosed = not result["reasoning"] and result["valid"] and not written.startswith(ANSWER)
    block("Reasoning", result["reasoning"], f"none that is closed; all that was written: {written}" if unclosed
          else "none was written")
    if not result["valid"]:
        reason = "it was cut off at the token limit" if result["truncated"] else "its answer names no candidate"
        console.print(Text(f"No ranking: {reason}. What the model wrote:", style="bold"))
        console.print(Padding(Text(result["output"]), (0, 0, 0, 2)))
        return
    table = Table(title=f"Ranking by {result['checkpoint']} ({len(result['candidates'])} candidates)",
                  title_justify="left")
    table.add_column("place", justify="right")
    table.add_column("title")
    table.add_column("held out")
    for row in result["ranking"]:
        table.add_row(str(row["place"]), Text(row["title"]), "yes" if row["is_held_out_item"] else "")
    console.print(table)
