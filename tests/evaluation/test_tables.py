from __future__ import annotations

import io
import json
import re
import subprocess

import pytest

from r2rec_jax.evaluation.tables import COLUMNS, git_state, markdown, print_table, provenance, result_file
from r2rec_jax.files import write_json

ROW = {"system": "sft+grpo", "dataset": "ml-100k", "negatives": "uniform", "split": "last-positive", "seed": 0,
       "users": 300, "hr@1": 0.25, "hr@3": 0.5, "ndcg@3": 0.4, "valid_rate": 0.987, "seconds_per_user": 1.234}


@pytest.fixture(autouse=True)
def outside_an_image(monkeypatch):
    monkeypatch.delenv("R2REC_COMMIT", raising=False)


def git(folder, *arguments):
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True,
                   capture_output=True)


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_what_rows_share_stands_above_the_table():
    out = io.StringIO()
    print_table([ROW, {**ROW, "system": "popularity", "valid_rate": None}], "end of run", file=out)
    text = out.getvalue()
    assert text.splitlines()[0].strip() == ("end of run, ml-100k, uniform negatives, split last-positive, seed 0, "
                                            "300 users")
    assert all(h in text for h in ("HitRatio@1", "HitRatio@3", "NDCG@3", "valid", "s/user"))
    assert cells(text) == [["sft+grpo", "0.250", "0.500", "0.400", "98.7%", "1.23"],
                           ["popularity", "0.250", "0.500", "0.400", "-", "1.23"]]
    assert max(map(len, text.splitlines()[1:])) <= 80


def test_what_rows_do_not_share_is_a_column_and_is_not_cut():
    out = io.StringIO()
    print_table([ROW, {**ROW, "negatives": "popularity", "users": 900}], file=out)
    assert [row[-2:] for row in cells(out.getvalue())] == [["uniform", "300"], ["popularity", "900"]]
    assert out.getvalue().startswith("ml-100k, split last-positive, seed 0")


def test_markdown_has_a_cell_for_each_column():
    lines = markdown([ROW, {**ROW, "system": "a|b"}]).splitlines()
    assert len(lines) == 4
    assert all(len(re.findall(r"(?<!\\)\|", line)) == len(COLUMNS) + 1 for line in lines)
    assert lines[2].startswith("| sft+grpo | 0.250 | 0.500 | 0.400 | 98.7% |")
    assert "a\\|b" in lines[3]


def test_result_file_has_what_the_schema_asks_for(tmp_path):
    path = tmp_path / "results" / "tiny.json"
    write_json(path, result_file("tiny recipe", [ROW], "ab12", note="small"))
    got = json.loads(path.read_text(encoding="utf-8"))
    assert {"what", "created", "commit", "dirty", "config_sha256", "hardware", "versions", "rows"} <= got.keys()
    assert (got["rows"], got["config_sha256"], got["note"]) == ([ROW], "ab12", "small")
    assert [p.name for p in path.parent.iterdir()] == ["tiny.json"]


@pytest.mark.parametrize(("rows", "message"), [
    ([], "at least one row"),
    ([{k: v for k, v in ROW.items() if k not in ("negatives", "hr@3")}], "lacks negatives, hr@3"),
    ([{**ROW, "hr@1": float("nan")}], "hr@1 = nan"),
])
def test_rows_that_say_too_little_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        result_file("x", rows, "ab")


def test_benchmark_rows_are_result_rows_too():
    row = {"work": "rollout", "preset": "cpu", "metric": "new_tokens_per_s", "ours": 1.0, "pytorch": 0.5, "ratio": 2.0}
    assert result_file("bench", [row], "ab")["rows"] == [row]


def test_provenance_names_hardware_and_versions():
    got = provenance()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", got["created"])
    assert re.fullmatch(r"unknown|[0-9a-f]{40}", got["commit"])
    assert re.search(r", \d+ cores, \d+ GB$", got["hardware"])
    assert {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "numpy",
            "python"} <= got["versions"].keys()
    assert "not installed" not in got["versions"].values()


def test_a_commit_made_meanwhile_is_not_what_runs(monkeypatch):
    before = provenance()
    monkeypatch.setattr("r2rec_jax.evaluation.tables.git_state", lambda folder: ("later", False))
    assert provenance()["commit"] == before["commit"]


def test_git_state_follows_the_checkout(tmp_path):
    assert git_state(tmp_path) == ("unknown", None)
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("a = 1\n")
    assert git_state(tmp_path) == ("unknown", None), "no commit yet"
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-qm", "one")
    commit, dirty = git_state(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}", commit) and dirty is False
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tiny.json").write_text("{}")
    assert git_state(tmp_path) == (commit, False)
    (tmp_path / "code.py").write_text("a = 2\n")
    assert git_state(tmp_path) == (commit, True)


def test_an_image_is_of_the_commit_that_it_was_told_of(tmp_path, monkeypatch):
    monkeypatch.setenv("R2REC_COMMIT", "0123456789" * 4)
    assert git_state(tmp_path) == ("0123456789" * 4, False)
    monkeypatch.setenv("R2REC_COMMIT", "0123456789" * 4 + "-dirty")
    assert git_state(tmp_path) == ("0123456789" * 4, True)
    for unknown in ("v1.0", "0123456", "HEAD-dirty", "0123456789" * 4 + "-dirty\n"):
        monkeypatch.setenv("R2REC_COMMIT", unknown)
        with pytest.raises(ValueError, match=r"R2REC_COMMIT must be a commit's 40 hex digits.* build the image as"):
            git_state(tmp_path)
    monkeypatch.setenv("R2REC_COMMIT", "")
    assert git_state(tmp_path) == ("unknown", None)


def test_a_checkout_is_asked_and_not_the_image_around_it(tmp_path, monkeypatch):
    monkeypatch.setenv("R2REC_COMMIT", "0123456789" * 4)
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == ("unknown", None)
    git(tmp_path, "commit", "-qm", "one", "--allow-empty")
    assert git_state(tmp_path)[0] not in ("unknown", "0123456789" * 4)


def test_a_package_inside_another_checkout_has_no_commit(tmp_path):
    git(tmp_path, "init", "-q")
    inside = tmp_path / "site-packages"
    inside.mkdir()
    (inside / "m.py").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    assert git_state(inside) == ("unknown", None)
