"""Chat prompts as transformers builds them, round trips, folders, and errors of one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.tokens.parts import TokenizerParts, write_folder
from r2rec_jax.tokens.tokenizer import Tokenizer

HARMLESS = [
    "Hello world",
    "Profile: 25-34, F, artist.\nLiked: Toy Story (1995), Amélie (2001).\n\nCandidates:\n1. Heat\n2. Fargo\n",
    "\n\nline breaks that merge with the template's own",
    "  two spaces and a line break\n\nkept ",
    "日本 and 😀, it's 1995's 12345th",
    "",
]


def _auto(folder: Path):
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def reference(deepseek_tokenizer_dir: Path):
    return _auto(deepseek_tokenizer_dir)


@pytest.fixture(scope="session")
def exported(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As in a merged export, config.json says llama; transformers must still not rebuild the pre-tokenizer."""
    folder = _folder(tokenizer, tmp_path_factory.mktemp("exported"))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return folder


@pytest.fixture(scope="session")
def theirs(exported: Path):
    return _auto(exported)


@pytest.mark.parametrize("text", HARMLESS)
def test_chat_equals_apply_chat_template_deepseek(deepseek: Tokenizer, reference, text: str) -> None:
    expected = reference.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    chat = deepseek.chat(text)
    assert list(chat.ids) == expected
    assert chat.opened_think and chat.opening == "<think>\n"
    assert chat.ids[-2:] == (128013, 198)


def test_chat_equals_apply_chat_template_saved(tokenizer: Tokenizer, theirs) -> None:
    """Also SmolLM2's own default system message, and the exported folder of every tokenizer."""
    for text in HARMLESS:
        expected = theirs.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True,
                                              tokenize=True, return_dict=False)
        assert list(tokenizer.chat(text).ids) == expected


def test_smollm2_opens_with_the_system_message_of_its_template(smollm2: Tokenizer) -> None:
    chat = smollm2.chat("hi")
    assert "named SmolLM" in smollm2.decode(chat.ids) and not chat.opened_think


def test_end_tokens(tiny: Tokenizer, smollm2: Tokenizer, deepseek: Tokenizer, llama2: Tokenizer) -> None:
    assert tiny.token(tiny.end_id) == "<|end|>" and tiny.pad_id != tiny.end_id
    assert smollm2.token(smollm2.end_id) == "<|im_end|>"
    assert deepseek.token(deepseek.end_id) == "<｜end▁of▁sentence｜>" and deepseek.pad_id == deepseek.end_id
    assert llama2.token(llama2.end_id) == "</s>" and llama2.end_ids == (2,)


def test_an_end_of_turn_token_of_the_template_goes_before_eos(tiny: Tokenizer, tmp_path: Path) -> None:
    """Llama 3's case: the template ends a turn with a token that is not the end-of-sequence token."""
    tiny.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|bos|>"}))
    changed = Tokenizer.load(tmp_path)
    assert changed.end_id == tiny.end_id and changed.end_ids == (tiny.end_id, changed.bos_id)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_round_trips(tokenizer: Tokenizer, text: str) -> None:
    if any(tokenizer.decode(tokenizer.encode(char)) not in (char, " ") for char in set(text)):
        return  # SmolLM2's vocabulary lacks a few bytes
    for ids in (tokenizer.encode(text), tokenizer.encode_completion(text)):
        assert tokenizer.decode([*ids, tokenizer.end_id, tokenizer.pad_id]).replace("▁", " ") == text.replace("▁", " ")


def test_think_tags_stay_visible(tokenizer: Tokenizer) -> None:
    text = "<think>\nHeat is liked.\n</think>\n<answer>7, 3, 12</answer>"
    ids = [*tokenizer.encode_completion(text), tokenizer.end_id]
    assert tokenizer.decode(ids) == text
    assert max(ids) < tokenizer.vocab_size


def test_document_is_what_transformers_reads(tokenizer: Tokenizer, theirs) -> None:
    for text in [*HARMLESS, "<think>a</s><|im_end|>"]:
        assert tokenizer.encode_document(text) == theirs(text).input_ids
    assert theirs.eos_token_id in tokenizer.end_ids


def test_saved_folder_keeps_everything(tokenizer: Tokenizer, exported: Path) -> None:
    again = Tokenizer.load(exported)
    assert again.fingerprint == tokenizer.fingerprint and len(again.fingerprint) == 64
    assert (again.end_ids, again.pad_id, again.bos_id, again.vocab_size) == (
        tokenizer.end_ids, tokenizer.pad_id, tokenizer.bos_id, tokenizer.vocab_size)
    assert again.chat("Heat") == tokenizer.chat("Heat")


def test_fingerprint_sees_the_template(tiny: Tokenizer, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<|assistant|>")
    assert Tokenizer.load(tmp_path).fingerprint != tiny.fingerprint


def test_bare_sentencepiece_folder_equals_the_file(
    llama2: Tokenizer, llama2_tokenizer_file: Path, tmp_path: Path
) -> None:
    shutil.copy(llama2_tokenizer_file, tmp_path / "tokenizer.model")
    assert Tokenizer.load(tmp_path).fingerprint == llama2.fingerprint


def test_several_templates_need_a_default(tiny: Tokenizer, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    one = {"name": "default", "template": config["chat_template"]}
    path.write_text(json.dumps({**config, "chat_template": [one, {"name": "rag", "template": "x"}]}))
    assert Tokenizer.load(tmp_path).chat("a") == tiny.chat("a")
    path.write_text(json.dumps({**config, "chat_template": [{"name": "rag", "template": "x"}]}))
    with pytest.raises(ValueError, match="named 'default'"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(("template", "message"), [
    ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}", "exactly once"),
    ("hello", "exactly once"),
    ("{{ messages[0]['content'] | nofilter }}", "must render"),
    ("{{ ''.__class__.__mro__ }}{{ messages[0]['content'] }}", "must render"),
    ("{% for m in messages %}{{ raise_exception('no\nroles') }}{% endfor %}", "no roles"),
])
def test_bad_templates(tiny: Tokenizer, tmp_path: Path, template: str, message: str) -> None:
    tiny.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(tmp_path).chat("a")
    assert "\n" not in str(caught.value)


def test_a_date_in_the_template_is_constant(tiny: Tokenizer, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}26 Jul 2024{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert Tokenizer.load(tmp_path).chat("!").ids == tuple(tiny.encode("26 Jul 2024!"))


def test_bad_sources(tiny: Tokenizer, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = tmp_path / "damaged"
    shutil.copytree(_folder(tiny, tmp_path / "good"), damaged)
    (damaged / "tokenizer.json").write_text('{"version": "1.0"')
    config = tmp_path / "config"
    shutil.copytree(tmp_path / "good", config)
    (config / "tokenizer_config.json").write_text("[]")
    unknown = tmp_path / "unknown"
    shutil.copytree(tmp_path / "good", unknown)
    (unknown / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast",
                                                               "eos_token": "<|nowhere|>"}))
    model = tmp_path / "broken.model"
    model.write_bytes(b"\xff\xff nothing of the kind")
    for source, message in ((empty, "must hold tokenizer.json"), (damaged, "tokenizer.json must be"),
                            (config, "JSON object"), (unknown, "must be in the vocabulary"),
                            (model, "sentencepiece model"), (tmp_path / "nowhere", "must be a folder"),
                            ("no-such-owner/no-such-model", "AutoTokenizer")):
        with pytest.raises(ValueError, match=message) as caught:
            Tokenizer.load(source)
        assert "\n" not in str(caught.value)


def test_no_end_token_is_refused(tiny: Tokenizer, tmp_path: Path) -> None:
    path = _folder(tiny, tmp_path) / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(ValueError, match="end-of-sequence token"):
        Tokenizer.load(tmp_path)


def test_write_folder_leaves_no_temporary_file(tmp_path: Path) -> None:
    document = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    write_folder(TokenizerParts(json.dumps(document)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def _folder(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(folder)
    return folder
