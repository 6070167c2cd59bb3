"""The controls of the chat models: what they ask is new in the way that they say."""

import pytest

import chat_controls
from chat_controls import OTHER_NAMES, distance, words_in_slots, words_of
from tilelli_nb.chat.facts import items, load_domains, read_yaml
from tilelli_nb.chat.pairs import Pair, make_pairs


@pytest.fixture(scope="module")
def sets():
    return make_pairs(0, 6_000)


@pytest.mark.parametrize(
    "a, b, words",
    [
        ("what is the capital of france", "what is the capital of france", 0),
        ("which is the capital of france", "what is the capital of france", 1),
        ("name the capital of france", "what is the capital of france", 2),
        ("", "one two three", 3),
        ("one two three", "two three four", 2),
    ],
)
def test_the_distance_of_two_wordings(a, b, words):
    assert distance(a.split(), b.split()) == words == distance(b.split(), a.split())


def test_the_words_that_fill_a_pattern():
    patterns = ("the tail of the <animal>", "<noun> > French", '"<title>"')
    assert words_in_slots("the tail of the soup fox", patterns) == {"soup", "fox"}
    assert words_in_slots("drindorf > French", patterns) == {"drindorf"}
    assert words_in_slots('"The Brass Owl"', patterns) == {"the", "brass", "owl"}
    assert words_in_slots("something else", patterns) == set()
    assert words_in_slots("drindorf > Frenchman", patterns) == set()


def test_follow_ups_are_new_and_lean_on_a_turn(sets):
    found = chat_controls.follow_ups(0, sets.train, 40)
    assert [pair.answerable for pair in found] == [True] * 40 + [False] * 40
    trained = {(pair.question.lower(), pair.history) for pair in sets.train}
    for pair in found:
        assert len(pair.history) == 1
        assert (pair.question.lower(), pair.history) not in trained
    # real names that training refuses are no test of what it never showed
    unseen = {
        question
        for domain in load_domains()
        for topic in domain.unseen
        for question in topic.follow
    }
    for pair in found:
        assert pair.kind != "untrained" or pair.question in unseen
    unknown = {pair.kind for pair in found if not pair.answerable}
    assert unknown == {"invented", "untrained"}
    # what was trained is not asked
    others = chat_controls.follow_ups(0, found, 40)
    assert not {p[:1] + p[5:] for p in others} & {p[:1] + p[5:] for p in found}
    # twice the same, and of another seed others
    assert found == chat_controls.follow_ups(0, sets.train, 40)
    assert found != chat_controls.follow_ups(1, sets.train, 40)


def test_other_names_have_no_word_of_training(sets):
    trained = words_of(sets.train)
    found = chat_controls.strange_names(0, trained)
    assert len(found) > 200 and not any(pair.answerable for pair in found)
    for pair in found:
        # all that is strange in the question is the name
        assert words_of([pair]) - trained, pair.question
    other = chat_controls.yaml.safe_load(OTHER_NAMES.read_text(encoding="utf-8"))
    ours = read_yaml("names")
    # plain words: not one that the machine has for training, too
    for part in ("title_nouns", "surnames", "children", "country_roots", "onsets"):
        shared = set(items(other[part])) & set(items(ours[part]))
        assert not shared, (part, shared)


def test_wordings_are_sorted_by_the_nearest_trained_one(sets):
    def pair(question):
        return Pair(question, "Paris.", "capitals", True, "capitals/France")

    small = sets._replace(
        train=[pair("What is the capital of France?"), pair("Name France's capital.")],
        phrasings=[
            pair("Which is the capital of France?"),
            pair("So what is the capital of France now?"),
            pair("Where does France have its government?"),
        ],
    )
    found = chat_controls.by_distance(small, 3)
    assert {name: [p.question for p in ps] for name, ps in found.items()} == {
        "1": ["Which is the capital of France?"],
        "2": ["So what is the capital of France now?"],
        "3 or more": ["Where does France have its government?"],
    }
