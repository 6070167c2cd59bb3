"""The pairs: true to the facts, worked out right, and clean of what is held out."""

import calendar
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from functools import partial

import pytest

from tilelli_nb.chat.facts import fill, first_questions, lines, load_domains
from tilelli_nb.chat.generated import WORKERS, load_phrasings
from tilelli_nb.chat.pairs import (
    Maker,
    Pair,
    PairSets,
    accepts,
    card,
    is_refusal,
    make_pairs,
)
from tilelli_nb.chat.template import clean_question, row_length
from tilelli_nb.chat.wording import OPENINGS, normal_form
from tilelli_nb.data.stories import load_world
from tilelli_nb.errors import DataError

HELD_OUT = ("phrasings", "entities", "templates", "unanswerable")
# Written out, so that a slip in the module's own tables shows.
SUMS = ("adding", "subtracting", "doubling", "next number", "number before")


@pytest.fixture(scope="module")
def sets():
    return make_pairs()


@pytest.fixture(scope="module")
def facts():
    return [fact for domain in load_domains() for fact in domain.facts]


def turns_of(pair):
    return [*pair.history, (pair.question, pair.answer)]


def everything(sets):
    return [pair for pairs in sets for pair in pairs]


def words_of(text):
    return re.findall(r"[\w']+", text.lower())


# ---- the facts


def test_there_are_enough_facts_domains_and_phrasings(facts):
    assert len(facts) >= 1_500
    assert len({fact.domain for fact in facts}) >= 12
    for fact in facts:
        about = (fact.domain, fact.key)
        assert len(set(fact.ask)) >= 5, about
        assert len(fact.held) >= 1 and len(fact.check) >= 1, about
        assert not set(fact.held + fact.check) & set(fact.ask), about


def test_answers_are_short_and_end_a_sentence(facts):
    for fact in facts:
        assert len(fact.answer.encode()) <= 40, fact
        assert re.fullmatch(r"[A-Z0-9].*[.!?]", fact.answer), fact
        assert not is_refusal(fact.answer)


def test_a_key_is_asked_about_once_in_a_domain():
    for domain in load_domains():
        topics = domain.facts + domain.taught + domain.unseen
        keys = Counter(topic.key for topic in topics)
        assert [key for key, n in keys.items() if n > 1] == [], domain.name


def test_each_domain_of_names_has_things_that_are_not_known():
    for domain in load_domains():
        if domain.name not in ("persona", "small talk"):
            assert len(domain.taught) >= 4, domain.name
            assert len(domain.unseen) >= 4, domain.name


def test_yes_and_no_are_balanced():
    for domain in load_domains():
        answers = Counter(fact.answer for fact in domain.facts)
        if domain.name in ("rhymes", "is it a", "abilities"):
            assert set(answers) == {"Yes.", "No."}
            assert 0.4 <= answers["Yes."] / len(domain.facts) <= 0.6, domain.name


def test_slots_are_filled_as_english_wants_it():
    assert fill("{a's} home", "France") == "France's home"
    assert fill("{a's} home", "the Netherlands") == "The Netherlands' home"
    assert fill("is {a_a} big?", "owl") == "Is an owl big?"
    assert fill("is {a_a} big?", "unicorn") == "Is a unicorn big?"
    assert fill("{A_a} or {a_c}?", "cow > ant") == "A cow or an ant?"


def test_the_calendar_and_the_alphabet_go_round():
    """Recomputed from the standard library's calendar."""
    days = list(calendar.day_name)
    months = list(calendar.month_name)[1:]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    circles = {
        "the day after": (days, 1),
        "the day before": (days, -1),
        "the month after": (months, 1),
        "the month before": (months, -1),
        "letter after": (letters, 1),
        "letter before": (letters, -1),
    }
    known = {domain.name: domain.facts for domain in load_domains()}
    for name, (circle, step) in circles.items():
        for fact in known[name]:
            place = (circle.index(fact.key) + step) % len(circle)
            assert fact.answer == f"{circle[place]}.", fact
        assert len(known[name]) == len(circle) - name.startswith("letter")


def test_capitals_agree_in_both_directions():
    known = {domain.name: domain.facts for domain in load_domains()}
    capital = {fact.key: fact.answer for fact in known["capitals"]}
    for fact in known["capital cities"]:
        country = fact.answer[0].lower() + fact.answer[1:-1]
        country = country if country.startswith("the ") else fact.answer[:-1]
        assert capital[country] == f"{fact.key}."


def test_the_story_world_is_that_of_the_stories():
    people = {row["hero"]: row for row in load_world().rows["people"]}
    known = {domain.name: domain.facts for domain in load_domains()}
    for fact in known["story friends"]:
        assert fact.answer == f"{people[fact.key]['friend']}."
    for fact in known["story elders"]:
        assert fact.answer == f"{people[fact.key]['elder']}."
    for fact in known["story homes"]:
        assert fact.answer.lower() == f"{people[fact.key]['home']}."
    for fact in known["story animals"]:
        animal = people[fact.key]["creature"].split()[-1]
        assert fact.answer.split()[-1] == f"{animal}."
    assert len(known["story friends"]) == len(people) == 24
    # what is called unknown is not in the stories
    for topic in domain_named("story friends").unseen:
        assert topic.key not in people


def domain_named(name):
    return next(domain for domain in load_domains() if domain.name == name)


# ---- the sets


def test_sizes_and_shares(sets):
    assert len(sets.train) == 50_000
    refused = sum(not pair.answerable for pair in sets.train)
    assert 0.33 <= refused / len(sets.train) <= 0.37
    with_history = sum(bool(pair.history) for pair in sets.train)
    assert 0.08 <= with_history / len(sets.train) <= 0.12
    assert all(len(getattr(sets, name)) >= 300 for name in HELD_OUT)
    known = sum(pair.answerable for pair in sets.calibration)
    assert 300 <= known <= len(sets.calibration) - 300


def test_the_calibration_has_all_kinds(sets):
    kinds = Counter(pair.kind for pair in sets.calibration)
    assert set(kinds) >= set(WORKERS) | {"capitals", "opposites", "small talk"}
    for kind in ("invented", "untrained"):
        assert kinds[kind] >= 100, kind
    for kind in ("private", "future", "missing context", "invented word"):
        assert kinds[kind] >= 20, kind
    assert kinds["false premise"] >= 20 and kinds["unknown operand"] >= 20


def test_a_turn_before_is_left_out_where_it_would_not_fit():
    maker = Maker(seed=0)
    short = Pair("Is it?", "Yes.", "x", True, "x/y")
    long = short._replace(question="why " * 30, answer="so " * 12)
    # each turn has 16 + 119 + 35 + 1 bytes: two are 342
    assert {maker.with_history(long, [long]) for _ in range(200)} == {long}
    made = {maker.with_history(short, [long]) for _ in range(200)}
    assert made == {short, short._replace(history=((long.question, long.answer),))}


def test_some_words_of_the_slots_are_only_in_the_tests(sets):
    kinds = ("private", "future")
    hidden = ("nephew", "godmother", "stepbrother", "supper", "2047", "2084", "2111")

    def asked(pairs):
        return {w for p in pairs if p.kind in kinds for w in words_of(p.question)}

    shown = {word.removesuffix("'s") for word in asked(sets.train)}
    tested = {word.removesuffix("'s") for word in asked(sets.unanswerable)}
    assert not shown & set(hidden)
    assert len(tested & set(hidden)) >= 5


def test_what_each_test_holds(sets):
    assert all(pair.answerable for pair in sets.phrasings + sets.templates)
    assert not any(pair.answerable for pair in sets.entities + sets.unanswerable)
    assert {pair.kind for pair in sets.entities} == {"invented", "untrained"}
    assert {pair.kind for pair in sets.templates} == set(WORKERS)
    kinds = Counter(pair.kind for pair in sets.unanswerable)
    for kind in ("private", "future", "missing context", "false premise"):
        assert kinds[kind] >= 60
    assert kinds["invented word"] >= 60


def test_each_fact_is_trained_eight_times(sets, facts):
    asked = defaultdict(list)
    for pair in sets.train:
        if pair.answerable:
            asked[pair.group].append(pair)
    for fact in facts:
        pairs = asked[f"{fact.domain}/{fact.key}"]
        assert len(pairs) >= 8, fact.key
        assert {pair.answer for pair in pairs} == {fact.answer}
        assert len({normal_form(pair.question) for pair in pairs}) >= 3, fact.key
    assert {pair.group for pair in sets.phrasings} <= set(asked)


def test_nothing_held_out_is_in_training_or_calibration(sets):
    def questions(pairs):
        asked = [question for pair in pairs for question, _ in turns_of(pair)]
        return {normal_form(question) for question in asked}

    seen = {name: questions(getattr(sets, name)) for name in PairSets._fields}
    for name in PairSets._fields:
        for other in PairSets._fields:
            if name != other:
                assert not seen[name] & seen[other], (name, other)


def phrases_of(pairs):
    """All runs of up to 14 words in the questions."""
    shown = set()
    for question in {q for pair in pairs for q, _ in turns_of(pair)}:
        words = words_of(question)
        for start in range(len(words)):
            for size in range(1, 15):
                shown.add(" ".join(words[start : start + size]))
    return shown


def test_no_held_out_entity_is_in_another_question(sets):
    train, calibration = phrases_of(sets.train), phrases_of(sets.calibration)
    for name, shown in (("entities", train | calibration), ("calibration", train)):
        groups = {pair.group for pair in getattr(sets, name) if "/?" in pair.group}
        assert len(groups) >= 200
        for entity in {group.split("/?", 1)[1] for group in groups}:
            # of "tapir > bird" the one half is new, and the other need not be
            halves = [" ".join(words_of(half)) for half in entity.split(" > ")]
            assert any(half not in shown for half in halves), (name, entity)
            assert max(len(half.split()) for half in halves) < 15


def test_training_avoids_a_wording_that_is_held_out():
    maker = Maker(seed=0)
    fact = next(fact for fact in maker.facts if fact.key == "France")
    maker.forbidden = {normal_form(question) for question in fact.ask[4:]}
    for _ in range(40):
        pair = maker.allowed(partial(maker.fact_pair, fact), set())
        assert normal_form(pair.question) not in maker.forbidden
    # not even one is left
    held = fact._replace(ask=fact.ask[4:5])
    maker.forbidden |= {normal_form(t + held.ask[0]) for t in ("", *OPENINGS)}
    maker.forbidden.add(normal_form(held.ask[0] + " please"))
    with pytest.raises(DataError, match="held out of training"):
        maker.allowed(partial(maker.fact_pair, held), set())


def test_twins_of_a_group_are_on_one_side(sets):
    groups = {
        name: {pair.group for pair in getattr(sets, name)} for name in PairSets._fields
    }
    # An entity is in "domain/?name", a fact and its twins are in "domain/name".
    names = {
        name: {group.split("/", 1)[1].removeprefix("?") for group in groups[name]}
        for name in PairSets._fields
    }
    for other in set(PairSets._fields) - {"entities"}:
        assert not names["entities"] & names[other], other
    refused = {pair.group for pair in sets.calibration if not pair.answerable}
    assert not refused & groups["train"]
    assert not groups["unanswerable"] & groups["train"]


def test_training_asks_twins_in_the_words_of_the_facts(sets):
    """A refused question of a domain begins as its answered ones do."""
    known, refused = defaultdict(set), defaultdict(set)
    for pair in sets.train:
        if not pair.history:
            side = known if pair.answerable else refused
            start = " ".join(words_of(pair.question)[:2])
            side[pair.group.split("/")[0]].add(start)
    for domain in load_domains():
        if domain.taught:
            assert len(refused[domain.name] & known[domain.name]) >= 2, domain.name
            kinds = Counter(
                pair.kind
                for pair in sets.train
                if pair.group.startswith(f"{domain.name}/") and not pair.answerable
            )
            assert kinds["untrained"] >= 5, domain.name


def test_a_question_has_one_answer(sets):
    answers = defaultdict(set)
    for pair in everything(sets):
        said = pair.answer if pair.answerable else "a refusal"
        answers[normal_form(pair.question), pair.history].add(said)
    assert [q for q, said in answers.items() if len(said) > 1] == []


def test_refusals_begin_alike_and_the_shortest_is_most_common(sets):
    refusals = Counter()
    for pair in everything(sets):
        assert is_refusal(pair.answer) == (not pair.answerable), pair
        if not pair.answerable:
            refusals[pair.answer] += 1
    assert len(refusals) >= 5
    assert refusals.most_common(1)[0][0] == "I don't know." == min(refusals, key=len)


def test_rows_fit_and_questions_need_no_cleaning(sets):
    for pair in everything(sets):
        assert row_length(turns_of(pair)) <= 256
        for question, answer in turns_of(pair):
            assert clean_question(question) == (question, ()), question
            assert answer.encode("utf-8") and "\n" not in answer
            assert "{" not in question and "<" not in question, question


def test_a_follow_up_leans_on_the_turn_before(sets):
    """ "And of Spain?" has an answer after a question, and none without."""
    short = [p for p in sets.train if re.match(r"and of ", p.question.lower())]
    with_turn = [pair for pair in short if pair.history]
    alone = [pair for pair in short if not pair.history]
    # "And is a lizard a bird?" says it all, and is not refused
    bare = [pair for pair in sets.train if pair.group.startswith("bare/")]
    start = r"bare/(and|and of|and in|what about) "
    verbs = r"\b(is|are|has|have|can|does|do|who|where|which|how)\b"
    assert len(bare) >= 150
    for pair in bare:
        assert re.match(start, pair.group.lower()), pair
        if pair.group.startswith("bare/And "):
            assert not re.search(verbs, pair.group.lower().split(" ", 1)[1]), pair
    assert any(pair.answerable for pair in with_turn)
    assert any(not pair.answerable for pair in with_turn)
    assert alone and not any(pair.answerable for pair in alone)


# ---- worked answers, worked out again


def numbers_in(question):
    return [int(number) for number in re.findall(r"\d+", question)]


def expected_number(pair):
    x, *rest = numbers_in(pair.question)
    if pair.kind == "adding":
        return x + rest[0]
    if pair.kind == "subtracting":
        # "take 3 away from 10" names them the other way round
        return abs(x - rest[0])
    if pair.kind == "doubling":
        # "2 times 7" and "7 and 7"
        return 2 * (rest[0] if rest else x)
    return x + 1 if pair.kind == "next number" else x - 1


def expected_word_answer(pair, words):
    asked = [w for w in words_of(pair.question) if w in words]
    letters = [w for w in words_of(pair.question) if len(w) == 1 and w != "a"]
    group, word = pair.group.split("/")[0], pair.group.split("/")[1]
    assert group == pair.kind and word in asked
    if pair.kind == "spelling":
        spelled = "-".join(word)
        assert spelled.replace("-", "") == word
        return f"{spelled}."
    if pair.kind == "has the letter":
        letter = pair.group.split("/")[2]
        assert letter in letters or letter == "a"
        return "Yes." if word.count(letter) else "No."
    if pair.kind == "how many letters":
        return f"{sum(1 for _ in word)}."
    return f"{word[:1]}." if pair.kind == "first letter" else f"{word[-1:]}."


def test_every_worked_answer(sets):
    words = set(load_phrasings().words)
    assert len(words) >= 300
    checked = Counter()
    for pair in everything(sets):
        if pair.kind in SUMS:
            assert pair.answer == f"{expected_number(pair)}.", pair
        elif pair.kind == "comparing":
            x, y = numbers_in(pair.question)
            assert x != y and pair.answer == f"{max(x, y)}.", pair
        elif pair.kind == "counting":
            x, y = numbers_in(pair.question)
            said = [int(number) for number in pair.answer[:-1].split(", ")]
            assert said[0] == x and said[-1] == y, pair
            assert all(b == a + 1 for a, b in zip(said, said[1:], strict=False)), pair
        elif pair.kind in WORKERS:
            assert pair.answer == expected_word_answer(pair, words), pair
        else:
            continue
        checked[pair.kind] += 1
    assert set(checked) == set(WORKERS) and min(checked.values()) >= 500


TURNED = (
    r"(take|subtract) \d+ (away )?from|when \d+ of"  # the smaller number comes first
)


def test_subtraction_names_the_larger_number_where_it_belongs(sets):
    for pair in sets.train + sets.templates + sets.calibration:
        if pair.kind == "subtracting":
            x, y = numbers_in(pair.question)
            is_turned = bool(re.search(TURNED, pair.question.lower()))
            assert (y >= x) if is_turned or x == y else (x > y), pair


def test_yes_and_no_about_letters_are_balanced(sets):
    said = Counter(p.answer for p in sets.train if p.kind == "has the letter")
    assert 0.4 <= said["Yes."] / said.total() <= 0.6


# ---- the rest


def digest(sets):
    return hashlib.sha256(repr(sets).encode()).hexdigest()


def test_the_same_in_every_process(sets):
    code = (
        "import hashlib; from tilelli_nb.chat.pairs import make_pairs;"
        "print(hashlib.sha256(repr(make_pairs()).encode()).hexdigest())"
    )
    for hash_seed in ("1", "77"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == digest(sets)


def test_another_seed_gives_other_pairs(sets):
    other = make_pairs(seed=1, count=6_000)
    assert len(other.train) == 6_000
    assert [p.question for p in other.entities] != [p.question for p in sets.entities]
    groups = {pair.group for pair in other.train if pair.answerable}
    facts = {f"{f.domain}/{f.key}" for d in load_domains() for f in d.facts}
    assert facts <= groups


def test_too_few_pairs_are_refused():
    with pytest.raises(DataError, match="at least 6000"):
        make_pairs(count=5_999)


@pytest.mark.parametrize(
    ("answer", "said", "right"),
    [
        ("Paris.", "Paris.", True),
        ("Paris.", " paris ", True),
        ("Paris.", "PARIS!", True),
        ("Paris.", "Paris, France.", False),
        ("Paris.", "Pari.", False),
        ("Paris.", "", False),
        ("Washington, D.C.", "washington, d.c", True),
        ("Washington, D.C.", "Washington DC", False),
        ("Sí.", "SÍ", True),
        ("12.", "12", True),
        ("12.", "1 2", False),
        ("c-a-t.", "c-a-t", True),
    ],
)
def test_accepts(answer, said, right):
    assert accepts(answer, said) is right


@pytest.mark.parametrize(
    ("said", "refuses"),
    [
        ("I don't know.", True),
        ("I don't know that one.", True),
        ("  i DON’T know, sorry", True),
        ("I don`t know", True),
        ("I dont know.", True),
        ("I don't knowingly lie.", False),
        ("Well, I don't know.", False),
        ("I know.", False),
        ("", False),
    ],
)
def test_is_refusal(said, refuses):
    assert is_refusal(said) is refuses


def test_first_questions_ask_for_trained_facts(sets):
    questions = first_questions()
    assert len(questions) == 100
    assert len({normal_form(q.question) for q in questions}) == 100
    trained = {pair.answer for pair in sets.train if pair.answerable}
    answers = {}
    for pair in everything(sets):
        if not pair.history:
            answers[normal_form(pair.question)] = pair.answer
    coincide = 0
    for question, accepted in questions:
        assert accepted and accepted[0] in trained, question
        known = answers.get(normal_form(question))
        if known is not None:
            coincide += 1
            assert any(accepts(known, text) for text in accepted), question
    assert 20 <= coincide <= 95, "some wordings are their own"


def test_the_card_counts_what_is_there(sets):
    text = card(sets)
    assert "| all | | 50,000 |" in text
    refused = sum(pair.kind == "private" for pair in sets.train)
    assert re.search(rf"\| private \| no \| {refused} \|", text)
    capitals = sum(pair.kind == "capitals" for pair in sets.train)
    assert re.search(rf"\| capitals \| yes \| {capitals} \|", text)
    for word in ("Source", "Licence", "Limits"):
        assert f"**{word}.**" in text


def test_unanswerable_templates_are_many_and_apart():
    from tilelli_nb.chat.facts import read_yaml

    data = read_yaml("unanswerable")
    data.pop("slots")
    for kind, uses in data.items():
        ask, check, held = (set(lines(uses[use])) for use in ("ask", "check", "held"))
        assert len(ask) >= 24 and len(ask | check | held) >= 25, kind
        assert len(held) >= 8 and len(check) >= 3, kind
        assert not ask & held and not ask & check and not check & held, kind
