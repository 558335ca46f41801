"""Templates are rendered as transformers renders them, and what is exported reads no clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2rec_jax.tokens.chat import template_pieces
from r2rec_jax.tokens.parts import NO_CLOCK, TokenizerParts, write_folder
from r2rec_jax.tokens.tokenizer import Tokenizer

DATED = """\
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- for m in messages %}{{ m.role + ": " + m.content + eos_token }}{% endfor %}
{%- if add_generation_prompt %}{{ "assistant: " }}{% endif %}
"""
"""Llama 3.2's way with the date."""

BARE = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}{% for m in messages %}{{ m.content }}"\
       "{% endfor %}"
IN_A_MACRO = "{% macro year() %}" + BARE.split("{% for")[0] + "{% endmacro %}{{ year() }}{{ messages[0].content }}"

MARKED = """\
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- 'assistant: ' }}
        {% generation %}
        {% set said = m.content %}
{{ loop.index }}{{ said + eos_token }}
        {% endgeneration %}
{{ said }}
    {%- else %}
        {{- m.role + ': ' + m.content + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""
"""As trl's training templates mark what is trained; what is set inside is unknown outside."""


def _with_template(tokenizer: Tokenizer, folder: Path, template: str) -> Tokenizer:
    tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return Tokenizer.load(folder)


def _theirs(folder: Path, *roles: str) -> str:
    """transformers' rendering of what is exported, each role saying its name in capitals."""
    import transformers

    messages = [{"role": role, "content": role.upper()} for role in roles]
    return transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=roles[-1] != "assistant")


def _ours(template: str, eos: str, *roles: str) -> str:
    pieces = template_pieces(template, {"eos_token": eos}, roles, generate=roles[-1] != "assistant")
    return "".join(text.upper() if is_place else text for text, is_place in pieces)


@pytest.mark.parametrize("template", [
    DATED, BARE, IN_A_MACRO, "\n" + DATED, "\n\n  " + BARE, "  {% if 1 %}" + BARE + "{% endif %}",
])
def test_an_exported_template_reads_no_clock(tiny: Tokenizer, tmp_path: Path, template: str) -> None:
    tokenizer = _with_template(tiny, tmp_path / "source", template)
    tokenizer.save(tmp_path / "out")
    eos = tiny.token(tiny.end_id)
    theirs = _theirs(tmp_path / "out", "user")
    assert theirs == _ours(template, eos, "user")
    assert ("26 Jul 2024" in theirs) == ("Jul" in template)
    assert _theirs(tmp_path / "source", "user") != _theirs(tmp_path / "out", "user")


def test_the_clock_is_taken_away_once(tiny: Tokenizer, tmp_path: Path) -> None:
    """A tokenizer that was exported is the tokenizer it was, also where its template comes from another file."""
    tokenizer = first = _with_template(tiny, tmp_path / "source", DATED)
    for name in ("once", "twice"):
        tokenizer.save(tmp_path / name)
        config = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        assert config["chat_template"] == NO_CLOCK + DATED
        tokenizer = Tokenizer.load(tmp_path / name)
        assert tokenizer.fingerprint == first.fingerprint and tokenizer.chat("Heat") == first.chat("Heat")
    parts = TokenizerParts((tmp_path / "once" / "tokenizer.json").read_text(), NO_CLOCK + DATED)
    write_folder(parts, tmp_path / "parts")
    config = json.loads((tmp_path / "parts" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == NO_CLOCK + DATED
    (tmp_path / "once" / "chat_template.jinja").write_text(NO_CLOCK + DATED)
    assert Tokenizer.load(tmp_path / "once").fingerprint == first.fingerprint


def test_a_template_without_a_clock_is_exported_as_it_is(tiny: Tokenizer, tmp_path: Path) -> None:
    _with_template(tiny, tmp_path / "source", MARKED).save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"] == MARKED


@pytest.mark.parametrize("roles", [("user",), ("user", "assistant")])
def test_what_is_marked_as_generated_is_shown(tiny: Tokenizer, tmp_path: Path, roles: tuple[str, ...]) -> None:
    tokenizer = _with_template(tiny, tmp_path, MARKED)
    eos = tiny.token(tiny.end_id)
    assert _theirs(tmp_path, *roles) == _ours(MARKED, eos, *roles)
    assert tokenizer.end_id == tiny.end_id


def test_a_mark_that_stays_open_is_refused_in_one_line(tiny: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must render .*'endgeneration'") as caught:
        _with_template(tiny, tmp_path, "{% generation %}{{ messages[0].content }}")
    assert "\n" not in str(caught.value)
