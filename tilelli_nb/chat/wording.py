"""How people type a question, and how to see that two are the same."""

import random
import re

OPENINGS = (
    "Tell me: ",
    "Please tell me: ",
    "Hey, ",
    "Hey Tilelli, ",
    "Tilelli, ",
    "Quick question: ",
    "Do you know this: ",
    "One more: ",
)
# An opening or a "please" only fits before a question that begins like one.
QUESTION_WORDS = frozenset(
    ("what", "which", "who", "whose", "how", "where", "when", "why")
    + ("is", "are", "does", "do", "can", "in", "on", "with", "of")
)


def normal_form(text: str) -> str:
    """Without capitals, punctuation and double spaces; + - = stay."""
    return " ".join(re.sub(r"[.,!?:;\"'\u2019]", " ", text.lower()).split())


def restyle(question: str, rng: random.Random, *, openings: bool = True) -> str:
    """Half of the questions lose a capital or a mark, or gain a few words, as people
    type them.
    """
    chance = rng.random()
    if chance < 0.5:
        return question
    bare = question.rstrip("?.! ")
    if chance < 0.62:
        return bare
    if chance < 0.74:
        return question.lower()
    if chance < 0.82:
        return bare.lower()
    first = re.split(r"\W", question, maxsplit=1)[0].lower()
    fits = openings and question.endswith("?") and first in QUESTION_WORDS
    if not fits:
        return question
    if chance < 0.88:
        return bare + ", please?"
    return rng.choice(OPENINGS) + question[0].lower() + question[1:]
