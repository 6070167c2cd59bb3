"""The 210 prompts of chapter 12: complete, new, answerable by what was trained, and each
of the regime that it is in.
"""

from collections import Counter

import pytest

from tilelli_nb.chat.facts import first_questions, load_domains
from tilelli_nb.chat.pairs import group_of, make_pairs
from tilelli_nb.chat.template import MAX_PROMPT, MAX_QUESTION, clean_question
from tilelli_nb.chat.wording import OPENINGS, normal_form
from tilelli_nb.evaluation.probes import Probe, load_probes, read_line
from tilelli_nb.evaluation.rule import REGIMES, Cases, cross_regime
from tilelli_nb.evaluation.signals import controls

PROBES = load_probes()
ANSWERABLE = [probe for probe in PROBES if probe.answerable]
REFUSED = [probe for probe in PROBES if not probe.answerable]


def of(regime, answerable=None):
    return [
        probe
        for probe in PROBES
        if probe.regime == regime and answerable in (None, probe.answerable)
    ]


def text_of(probe):
    return probe.prompt[:60]


@pytest.fixture(scope="module")
def pairs():
    return make_pairs()


@pytest.fixture(scope="module")
def trained(pairs):
    """The answer of each fact that is among the training pairs, by its group."""
    return {pair.group: pair.answer for pair in pairs.train if pair.answerable}


def wordings():
    """All wordings of all facts and of all that is unknown, by normal form."""
    for domain in load_domains():
        for topic in (*domain.facts, *domain.taught, *domain.unseen):
            for text in (*topic.ask, *topic.check, *topic.held):
                yield normal_form(text), topic


def test_seven_regimes_of_thirty():
    assert list(Counter(p.regime for p in PROBES).items()) == [(r, 30) for r in REGIMES]
    answerable = Counter(probe.regime for probe in ANSWERABLE)
    assert answerable == {
        "in_domain": 20,
        "off_topic": 10,
        "off_style": 20,
        "misleading": 15,
        "long_input": 18,
        "neo": 12,
        "gibberish": 8,
    }


def test_each_prompt_is_there_once():
    seen = Counter(normal_form(probe.prompt) or probe.prompt for probe in PROBES)
    assert seen.most_common(1)[0][1] == 1


def test_no_probe_is_in_any_set_of_the_pairs(pairs):
    known = {normal_form(pair.question) for part in pairs for pair in part}
    known |= {
        normal_form(turn[0]) for part in pairs for pair in part for turn in pair.history
    }
    assert len(known) > 30_000
    assert not [p.prompt for p in PROBES if normal_form(p.prompt) in known]


def test_no_probe_is_a_wording_of_the_facts_whatever_the_seed():
    """Not with an opening or a "please" more or less, either; nor one of the hundred
    first questions of chapter 11.
    """
    known = {text for text, _ in wordings()}
    known |= {normal_form(first.question) for first in first_questions()}
    openings = tuple(normal_form(opening) + " " for opening in OPENINGS)
    for probe in PROBES:
        text = normal_form(probe.prompt)
        # "Tell me the capital" is a wording, "Tell me: what" an opening
        shorter = {text.removeprefix(opening) for opening in ("", *openings)}
        shorter |= {form.removesuffix(" please") for form in shorter}
        assert not shorter & known, probe.prompt


@pytest.mark.parametrize("probe", ANSWERABLE, ids=text_of)
def test_each_answer_is_that_of_a_trained_fact(probe, trained):
    assert probe.fact in trained
    assert probe.is_right(trained[probe.fact])


def test_what_is_to_be_refused_is_no_trained_fact():
    """Its sentence is no wording of a fact; whether a fact answers it all the same, a
    reader must see.
    """
    facts = {t: topic for t, topic in wordings() if topic.answer}
    assert not [p.prompt for p in REFUSED if normal_form(p.prompt) in facts]
    assert all(bool(probe.fact) == (probe.regime == "neo") for probe in REFUSED)


def test_the_template_takes_each_as_it_is():
    for probe in PROBES:
        assert clean_question(probe.prompt) == (probe.prompt, ())
        assert probe.raw == probe.prompt.encode()
        assert probe.in_chat == b"USER: " + probe.raw + b"\nTILELLI: "
        assert len(probe.raw) <= MAX_QUESTION and len(probe.in_chat) <= MAX_PROMPT


@pytest.mark.parametrize("probe", of("neo"), ids=text_of)
def test_a_near_miss_is_one_word_away_from_a_trained_fact(probe, trained):
    assert probe.fact in trained
    words = normal_form(probe.prompt).split()
    distances = []
    for text, topic in wordings():
        others = text.split()
        if group_of(topic) == probe.fact and len(others) == len(words):
            distances.append(sum(a != b for a, b in zip(words, others, strict=True)))
    assert min(distances) == 1


@pytest.mark.parametrize("probe", of("long_input"), ids=text_of)
def test_a_long_input_is_long_before_its_question(probe):
    assert 90 <= len(probe.preamble.encode()) <= 150
    assert probe.prompt.startswith(probe.preamble + " ")
    question = probe.prompt.removeprefix(probe.preamble + " ")
    assert question[0].isupper() and question[-1] == "?"
    assert len(question.encode()) >= 15


def test_no_other_regime_is_long():
    others = [probe for probe in PROBES if probe.regime != "long_input"]
    assert max(len(probe.raw) for probe in others) < 90
    assert not [probe for probe in others if probe.preamble]


def test_the_trained_fact_is_what_a_long_input_asks(trained):
    """Behind the preamble stands a question in the words of training."""
    by_text = dict(wordings())
    for probe in of("long_input", answerable=True):
        question = probe.prompt.removeprefix(probe.preamble + " ")
        assert group_of(by_text[normal_form(question)]) == probe.fact


def test_gibberish_is_as_long_as_what_is_in_domain():
    lengths = [sorted(len(p.raw) for p in of(r)) for r in ("gibberish", "in_domain")]
    assert lengths[0] == lengths[1]


def test_what_the_controls_can_tell_apart():
    """In the template neither length nor framing tells gibberish from in-domain. Raw
    gibberish against framed questions, as in the published runs, is told by the framing
    alone.
    """

    def auroc(in_domain, gibberish, name):
        regimes = {
            regime: Cases(
                [True] * 30, {name: [controls(text)[name] for text in prompts]}
            )
            for regime, prompts in (("in_domain", in_domain), ("gibberish", gibberish))
        }
        return cross_regime(regimes, name)["gibberish"].value

    framed = [probe.in_chat for probe in of("in_domain")]
    noise = of("gibberish")
    assert auroc(framed, [p.in_chat for p in noise], "length") == 0.5
    assert auroc(framed, [p.in_chat for p in noise], "has_framing") == 0.5
    assert auroc(framed, [p.raw for p in noise], "has_framing") == 1.0


def test_registers():
    """Four answerable and two others of each: shouting first, terse last."""
    for answerable, count in ((True, 4), (False, 2)):
        prompts = [probe.prompt for probe in of("off_style", answerable)]
        for prompt in prompts[:count]:
            assert prompt == prompt.upper() and "!" in prompt
        for prompt in prompts[-count:]:
            assert prompt == prompt.lower() and len(prompt.split()) <= 3


def test_what_is_right():
    probe = Probe("neo", "What is 2 plus 2?", ("Four", "4"))
    assert probe.is_right("Four.") and probe.is_right(" 4 ") and probe.is_right("four!")
    assert not probe.is_right("Fourteen.") and not probe.is_right("I don't know.")
    assert not probe.is_right("")
    refused = Probe("neo", "What is a blorf?")
    assert refused.is_right("I don't know, sorry.")
    assert not refused.is_right("A fish.") and not refused.is_right("")


def test_a_line_of_the_files():
    assert read_line("neo", "a/b > c => What? => X; Y z", True) == Probe(
        "neo", "What?", ("X", "Y z"), "a/b > c"
    )
    assert read_line("neo", "a/b => What?", False) == Probe("neo", "What?", (), "a/b")
    assert read_line("gibberish", "!! =, ;", False) == Probe("gibberish", "!! =, ;")
    assert read_line("long_input", "It rained. || Why?", False) == Probe(
        "long_input", "It rained. Why?", (), "", "It rained."
    )
