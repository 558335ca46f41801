"""The ``template`` teacher: each step of a thought written from the facts of its hop, no model involved.

Hop 1 reads the target user's rating of the first item, hop 2 the neighbour's rating of it, hop 3 the neighbour's rating
of the final item; the last statement weighs them and predicts. The first three are functions of what lies before and
at their hop, never of the answer; only the last one knows it, as the paper's masked prompt intends: it picks, out of
the reasons that are true of this chain, one that leads to the true rating. Wording varies by a keyed hash,
or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from r2rec_jax.data.interactions import Item
from r2rec_jax.prompts.templates import TEMPLATE_VERSION, Wording, wording
from r2rec_jax.prompts.verbalize import TARGET, genre_texts, neighbour_name, rating_words, shares_genre, title_text
from r2rec_jax.prompts.views import ChainView
from r2rec_jax.thoughts.teacher import BatchTeacher, Phrase, Thought, end_once, join_words, phrasing

_STEPS = {1: "one point", 2: "two points", 3: "three points", 4: "four points"}


def _rated(rating: int) -> str:
    return f"{rating} ({rating_words(rating)})"


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]


def _shared(first: Item, second: Item) -> list[str]:
    others = set(genre_texts(second))
    return [genre for genre in genre_texts(first) if genre in others]


def _kind(item: Item, words: Wording) -> str:
    """What the item is an instance of: its genres, else "such movies"."""
    return join_words(genre_texts(item)[:3]) or f"such {words.items}"


def _hop1(chain: ChainView, words: Wording) -> list[str]:
    title, rating, kind = title_text(chain.item0), chain.rating_u0, _kind(chain.item0, words)
    given = f"The {TARGET} gave {title} a {_rated(rating)}"
    many = len(genre_texts(chain.item0)) != 1
    if rating >= 4:
        options = [
            f"{given}, so {kind} can please them.",
            f"{given}, which speaks for {kind}.",
            f"{given}: a sign of a taste for {kind}.",
            f"With a {_rated(rating)} for {title}, the {TARGET} seems open to {kind}.",
        ]
    elif rating == 3:
        options = [
            f"{given}, so {kind} neither {'win' if many else 'wins'} nor {'lose' if many else 'loses'} them.",
            f"{given}: {kind} {'leave' if many else 'leaves'} them undecided.",
            f"A {_rated(rating)} for {title} says that {kind} alone {'do' if many else 'does'} not win the {TARGET}.",
        ]
    else:
        options = [
            f"{given}, so {kind} {'are' if many else 'is'} no safe choice for them.",
            f"{given}, which speaks against {kind}.",
            f"With a mere {_rated(rating)} for {title}, the {TARGET} seems hard to win with {kind}.",
        ]
    if chain.item0.year is not None and genre_texts(chain.item0):
        options.append(f"{given}; it {words.era} {chain.item0.year} and is {kind}.")
    return options


def _hop2(chain: ChainView) -> list[str]:
    name, rating = neighbour_name(chain.neighbour), _rated(chain.rating_n0)
    other = _cap(name)
    gap = chain.rating_n0 - chain.rating_u0
    points, way = _STEPS.get(abs(gap), ""), "higher" if gap > 0 else "lower"
    if gap == 0:
        return [
            f"{other} gave it the same {rating}, so the two judge it alike.",
            f"{other} rated it {rating} too, so their tastes match here.",
            f"The same {rating} came from {name}: full agreement so far.",
        ]
    if abs(gap) == 1:
        return [
            f"{other} gave it {rating}, {points} {way}, so the two roughly agree.",
            f"{other} rated it {rating}, {points} {way}: their views are close.",
            f"{other} came close with {rating}, {points} {way}.",
        ]
    return [
        f"{other} gave it {rating}, {points} {way}, so the two differ here.",
        f"{other} rated it {rating}, {points} {way}: a clear disagreement.",
        f"{other} saw it otherwise and gave it {rating}, {points} {way}.",
    ]


def _hop3(chain: ChainView, words: Wording) -> list[str]:
    other, rating = neighbour_name(chain.neighbour), _rated(chain.rating_n1)
    first, final = title_text(chain.item0), title_text(chain.item1)
    shared, kind = join_words(_shared(chain.item1, chain.item0)), join_words(genre_texts(chain.item1)[:3])
    options: list[str] = []
    if shared:
        options += [
            f"{_cap(other)} gave {final} a {rating}, and like {first} it is {shared}.",
            f"Next comes {final}, which shares {shared} with {first}: {other} gave it {rating}.",
            f"{_cap(other)} gave a {rating} to {final}, which has {shared} in common with {first}.",
        ]
    elif kind and genre_texts(chain.item0) and not shares_genre(chain.item0, chain.item1):
        options += [
            f"{_cap(other)} gave {final} a {rating}; it is {kind}, a different kind of {words.item} from {first}.",
            f"Next comes {final}, which is {kind}, unlike {first}: {other} gave it {rating}.",
            f"{_cap(other)} gave a {rating} to {final}, which is {kind} and shares no {words.genre} with {first}.",
        ]
    else:
        options += [f"{_cap(other)} gave {final} a {rating}.", f"Next, {other} gave a {rating} to {final}."]
    age = _age(chain, words)
    if age:
        options.append(f"{_cap(other)} gave {final} a {rating}; it {age}.")
    return options


def _age(chain: ChainView, words: Wording) -> str:
    """How the final item's year relates to the first one's."""
    first, final = chain.item0.year, chain.item1.year
    if first is None or final is None:
        return ""
    title = title_text(chain.item0)
    if first == final:
        return f"{words.era} {final}, the same year as {title}"
    if first // 10 == final // 10:
        return f"belongs to the {final // 10 * 10}s like {title}"
    years = abs(first - final)
    return f"is {years} {'year' if years == 1 else 'years'} {'newer' if final > first else 'older'} than {title}"


def _reasons(chain: ChainView) -> list[str]:
    """Reasons, each true of the chain, why the target user's rating lies where it lies next to the neighbour's."""
    other, first, final = neighbour_name(chain.neighbour), title_text(chain.item0), title_text(chain.item1)
    lean = chain.rating_u0 - chain.rating_n0
    delta = chain.rating_u1 - chain.rating_n1
    close = abs(lean) <= 1
    if delta == 0:
        if close:
            return [f"Since the two agree on {first}, {other} is a good guide to {final}",
                    f"With views this close on {first}, the {TARGET} should see {final} as {other} does",
                    f"Agreement on {first} carries over to {final}"]
        return [f"They differ on {first}, but {final} can bring the two together",
                f"Despite the gap on {first}, nothing here speaks against the view of {other}"]
    way, mood = ("higher", "kinder") if delta > 0 else ("lower", "stricter")
    if lean * delta > 0:
        return [f"The {TARGET} was {mood} than {other} on {first}, so the same is likely for {final}",
                f"On {first} the {TARGET} went {way} than {other}, and should do so again"]
    shared = join_words(_shared(chain.item1, chain.item0))
    reasons: list[str] = []
    if shared and ((delta > 0 and chain.rating_u0 >= 4) or (delta < 0 and chain.rating_u0 <= 2)):
        feeling = "liking" if delta > 0 else "dislike"
        reasons.append(f"The {TARGET}'s {feeling} of {first}, also {shared}, should pull {final} {way}")
    known = genre_texts(chain.item0) and genre_texts(chain.item1)
    if known and not shares_genre(chain.item0, chain.item1) and delta < 0 and chain.rating_u0 >= 4:
        reasons.append(f"As {final} is unlike {first}, which they liked, the {TARGET} should stay below {other}")
    if reasons:
        return reasons
    size, side = "a little" if abs(delta) == 1 else "well", "above" if delta > 0 else "below"
    there = f"the {chain.rating_n1} of {other}"
    if close:
        return [f"The two agree on {first}, but one shared opinion proves little; for {final} the {TARGET} may land "
                f"{size} {side} {there}",
                f"The two agree on {first}, but {final} is another matter, and {size} {side} {there} is plausible"]
    return [f"As the two differ on {first}, {other} is a weak guide; for {final} the {TARGET} may land {size} {side} "
            f"{there}",
            f"As the two differ on {first}, {size} {side} {there} is plausible for {final}"]


def _last(chain: ChainView) -> list[str]:
    answer = f"predicted rating {_rated(chain.rating_u1)}."
    return [f"{reason}: {answer}" for reason in _reasons(chain)]


def brief_thought(chain: ChainView, phrase: Phrase) -> str:
    """One statement on the whole chain, closing rating included: for ranking prompts, which show it."""
    other, first, final = neighbour_name(chain.neighbour), title_text(chain.item0), title_text(chain.item1)
    gap0, gap1 = abs(chain.rating_u0 - chain.rating_n0), abs(chain.rating_u1 - chain.rating_n1)
    near0, near1 = gap0 <= 1, gap1 <= 1
    pair0 = f"{first} ({chain.rating_u0} and {chain.rating_n0})"
    pair1 = f"{final} ({chain.rating_u1} and {chain.rating_n1})"
    if near0 and near1:
        how = "" if gap0 + gap1 == 0 else "roughly "
        start = phrase([f"The {TARGET} and {other} {how}agree on {pair0} and {pair1}",
                        f"{_cap(other)} {how}shares the {TARGET}'s view of {pair0} and {pair1}"], "brief")
    elif near0 or near1:
        agreed, split = (pair0, pair1) if near0 else (pair1, pair0)
        how = "" if min(gap0, gap1) == 0 else "roughly "
        start = phrase([f"The {TARGET} and {other} {how}agree on {agreed} but not on {split}",
                        f"{_cap(other)} {how}shares the {TARGET}'s view of {agreed}, but not of {split}"], "brief")
    else:
        start = phrase([f"The {TARGET} and {other} disagree on {pair0} and {pair1}",
                        f"{_cap(other)} differs from the {TARGET} on {pair0} and {pair1}"], "brief")
    return start + _brief_tail(chain) + "."


def _brief_tail(chain: ChainView) -> str:
    """What the target user's own two ratings say about genres; a genre that they speak both ways of is left out."""
    liked: list[str] = []
    disliked: list[str] = []
    for item, rating in ((chain.item1, chain.rating_u1), (chain.item0, chain.rating_u0)):
        genres = liked if rating >= 4 else disliked if rating <= 2 else []
        genres += [genre for genre in genre_texts(item) if genre not in genres]
    both = _shared(chain.item1, chain.item0)
    ups = [genre for genre in liked if genre not in disliked]
    downs = [genre for genre in disliked if genre not in liked]
    for way, genres in (("for", ups), ("against", downs)):
        if genres:
            shared = [genre for genre in genres if genre in both]
            return f", a point {way} {join_words((shared or genres)[:3])}"
    return ""


class TemplateTeacher(BatchTeacher):
    """Deterministic, offline, and never wrong about its facts.

    Args:
        domain: whose wording it uses.
        varied: each statement in one of several phrasings; otherwise always in the same.
    """

    name = "template"

    def __init__(self, domain: str, *, varied: bool = True) -> None:
        self._words = wording(domain)
        self._varied = varied

    @property
    def version(self) -> str:
        """Domain and version of the wording."""
        return f"{self._words.domain}-{TEMPLATE_VERSION}{'' if self._varied else '-fixed'}"

    def write(self, chain: ChainView, key: str) -> Thought:
        """The thought of one chain; ``key`` and the chain's ids choose among the phrasings, where they vary."""
        ids = (chain.user.user_id, chain.item0.item_id, chain.neighbour.user_id, chain.item1.item_id)
        return self.phrased(chain, phrasing(key, *ids, varied=self._varied))

    def phrased(self, chain: ChainView, phrase: Phrase) -> Thought:
        """The thought of one chain in given phrasings; its slots are ``0`` to ``3``, the hops, and ``brief``."""
        steps = (_hop1(chain, self._words), _hop2(chain), _hop3(chain, self._words), _last(chain))
        statements = tuple(end_once(phrase(options, str(hop))) for hop, options in enumerate(steps))
        return Thought(statements, chain.rating_u1, self.name, end_once(brief_thought(chain, phrase)))

    def write_many(self, chains: Sequence[ChainView], keys: Sequence[str]) -> list[Thought | None]:
        """The thoughts of many chains."""
        return [self.write(chain, key) for chain, key in zip(chains, keys, strict=True)]
