"""The local teacher: prompts in, completions out, several attempts, only valid thoughts kept."""

from __future__ import annotations

import pytest

from r2rec_jax.data.interactions import Item, User
from r2rec_jax.prompts.views import ChainView
from r2rec_jax.thoughts.local import LocalTeacher, read_thought

CHAINS = [ChainView(User("7", ()), Item("1", "Heat", 1995, ()), User("12", ()),
                    Item(str(k), f"Big {'abc'[k]}", 1988, ()), 5, 4, 2, 3) for k in range(3)]


def completion(chain: ChainView, rating: int = 3, opened: bool = True) -> str:
    lines = ["Reasoning process:", "1. The target user gave **Heat** a 5.", "Step 2: User 12 also gave it 4.",
             f"- User 12 rated {chain.item1.title} 2.", f"So a middling view is likely: predicted rating {rating}."]
    return ("" if opened else "<think>\n") + "\n".join(lines) + f"\n</think>\nFinal answer:\n<answer>{rating}</answer>"


def test_reading() -> None:
    thought = read_thought(completion(CHAINS[0]), opened_think=True)
    assert thought is not None and thought.rating == 3
    assert thought.statements[:2] == ("The target user gave Heat a 5.", "User 12 also gave it 4.")
    assert read_thought(completion(CHAINS[0], opened=False), opened_think=False) == thought
    for text in ("", "x</think>", "</think><answer>3</answer>", "a b c</think><answer>9</answer>", "\ud800\x00"):
        assert read_thought(text, opened_think=True) is None


def test_attempts_and_reasons() -> None:
    calls: list[tuple[list[str], list[str]]] = []

    def generate(prompts: list[str], keys: list[str]) -> list[str]:
        calls.append((prompts, keys))
        attempt = len(calls) - 1
        texts = []
        for prompt in prompts:
            row = next(k for k, chain in enumerate(CHAINS) if f"give {chain.item1.title}?" in prompt)
            good = row == 0 or (row == 1 and attempt == 2)
            texts.append(completion(CHAINS[row], 3 if good else 4) if attempt != 1 else "garbage")
        return texts

    teacher = LocalTeacher(generate, "movies", model="m1", attempts=3, opened_think=True)
    thoughts = teacher.write_many(CHAINS, ["a", "b", "c"])
    assert thoughts[0] is not None and thoughts[1] is not None and thoughts[2] is None
    assert [keys for _, keys in calls] == [["a/0", "b/0", "c/0"], ["b/1", "c/1"], ["b/2", "c/2"]]
    assert teacher.rejected == {"final rating must be ; got": 3, "no reasoning or no rating": 2}
    assert "Correct answer: 3 (neutral)" in calls[0][0][0]
    assert teacher.version == "movies-m1-3" and thoughts[0].teacher == "local"
    assert thoughts[0].one_line == thoughts[0].statements[-1]
    calls.clear()
    assert teacher.write_many(CHAINS[2:], ["c"]) == [None] and len(calls) == 3
    with pytest.raises(ValueError, match="attempts"):
        LocalTeacher(generate, "movies", model="m", attempts=0, opened_think=True)
