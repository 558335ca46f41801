"""Chat templates: what stands around the user's text, with the text itself kept out of the rendering.

The template is rendered once with placeholders for the messages, then split at them. The pieces between are the
template's own and may hold special tokens; what goes into the places is encoded as untrusted text. Templates are code
from outside (GGUF files carry them), so they run in Jinja's sandbox. ``strftime_now`` is not offered: a prompt that
changes with the date cannot be reproduced, and Llama 3's template then takes its own constant date; what is exported
(:func:`r2rec_jax.tokens.parts.write_folder`) keeps others from offering it. ``{% generation %}``, by which transformers
and trl mark what a model says, shows what is inside.
"""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar

from r2rec_jax.reasons import one_line

USER, ASSISTANT = "user", "assistant"

PLAIN_TEMPLATE = """\
{% for message in messages %}\
{% if message['role'] == 'user' %}{{ '### User\n' + message['content'] + '\n\n' }}\
{% elif message['role'] == 'assistant' %}{{ '### Assistant\n' + message['content'] ~ eos_token ~ '\n\n' }}\
{% else %}{{ message['content'] + '\n\n' }}{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}{{ '### Assistant\n' }}{% endif %}"""
"""For tokenizers without a chat template (base models)."""

BOS = "{{ bos_token }}"

_OPENED = re.compile(r"<think>\s*\Z")


def _placeholder(role: str) -> str:
    return f"zqPLACEOF{role.upper()}qz"


_PLACES = re.compile("(" + "|".join(_placeholder(role) for role in (USER, ASSISTANT)) + ")")


def template_pieces(
    template: str, special_tokens: dict[str, str], roles: tuple[str, ...], generate: bool
) -> list[tuple[str, bool]]:
    r"""The template's own text and the places of the messages, in order.

    Args:
        template: Jinja source.
        special_tokens: ``bos_token`` and the like, by name.
        roles: one message for each role.
        generate: end with the template's generation prompt.

    Returns:
        Pairs of text and whether it is a place (then the text is the role). For a ChatML template and
        ``roles=("user",)``:
        ``[("<|im_start|>user\n", False), ("user", True), ("<|im_end|>\n<|im_start|>assistant\n", False)]``.

    Raises:
        ValueError: when the template fails, or does not show each message exactly once.
    """
    messages = [{"role": role, "content": _placeholder(role)} for role in roles]
    rendered = _render(template, messages=messages, add_generation_prompt=generate, tools=None, documents=None,
                       **special_tokens)
    split = _PLACES.split(rendered)
    names = {_placeholder(role): role for role in roles}
    pieces = [(names.get(text, text), text in names) for text in split if text]
    shown = [text for text, is_place in pieces if is_place]
    if sorted(shown) != sorted(roles):
        raise ValueError(f"a chat template must show each message exactly once; got messages {list(roles)} "
                         f"shown as {shown}; give the backbone another chat template")
    return pieces


def text_after_answer(template: str, special_tokens: dict[str, str]) -> str:
    """What the template puts after an assistant's message: its end-of-turn token comes first."""
    pieces = template_pieces(template, special_tokens, (USER, ASSISTANT), generate=False)
    text, is_place = pieces[-1]
    return "" if is_place else text


def opened_think(pieces: list[tuple[str, bool]]) -> str:
    r"""The ``<think>`` (and the white space after it) that ends the generation prompt, or an empty string.

    Example: ``"<think>\n"`` for DeepSeek-R1-Distill, ``""`` for SmolLM2.
    """
    text, is_place = pieces[-1]
    found = None if is_place else _OPENED.search(text)
    return found.group() if found else ""


def _render(template: str, **values: Any) -> str:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags: ClassVar = {"generation"}

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = to_json
    try:
        return environment.from_string(template).render(**values)
    except Exception as error:  # a template is code: it can fail in any way
        raise ValueError(f"a chat template must render a {' and a '.join(m['role'] for m in values['messages'])} "
                         f"message; got {one_line(error)}") from error
