"""The models run in the page and say what PyTorch says: in Chromium, without a network.
Numbers are compared on a site in a folder of its server, as on GitHub Pages; what a
reader does is done on one at the root.
"""

import functools
import json
import random
import re
from pathlib import Path

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from live_server import MODELS, LiveServer

import live_models
import offline
import pairs
from tilelli_nb import TilelliLM, load_config
from tilelli_nb.chat import template
from tilelli_nb.inference.chatting import Conversation, Gate, write_gate
from tilelli_nb.inference.decoding import prefill_prompt
from tilelli_nb.inference.sampling import Sampling, probabilities, window_start

pytestmark = pytest.mark.xdist_group("live")

BUNDLED = sorted(
    path.parent for path in live_models.WEIGHTS.glob("*/model.safetensors")
)
SIZES = ["nano", "lite-10m"]  # the second is drawn at random while none is bundled
LIMIT = 1e-3  # of a difference between logits
PATIENCE = 180_000  # milliseconds; the machine may have other things to do
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
PROMPTS = {
    "nothing": b"",
    "a letter": b"O",
    "a beginning": b"Once upon a time there was a little ",
    "sixteen bytes": b"The fox was red.",
    "more than it keeps": b"Pip saw a red fox, and the fox saw Pip.",
    "two bytes a letter": "Zoë café naïve".encode(),
    "any bytes": bytes(range(0, 256, 3)),
    "a full window": b"She lived in a cozy burrow under the hill. " * 5
    + b"One warm day in summer she went ou",
    "one byte too many": b"Tom was fast, and Lucy was slow and steady. " * 5
    + b"They had a race to the old mill by t",
}


# What the pages run, and what they are compared with


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder like tilelli_nb/weights: the bundled models, and of each size and kind
    that is not bundled yet one that stands in for it.
    """
    folder = tmp_path_factory.mktemp("weights")
    for model in BUNDLED:
        (folder / model.name).symlink_to(model)
    if not (folder / "lite-10m").exists():
        lm = TilelliLM(load_config("lite_10m"), seed=1).eval()
        lm.save_packed(folder / "lite-10m")
    if not (folder / "nano-chat").exists():
        nano = TilelliLM.from_pretrained("tilelli/nano")
        nano.save_packed(folder / "nano-chat")
        write_gate(folder / "nano-chat", Gate("margin", 0.5))
    return folder


@pytest.fixture(scope="module")
def models(weights, tmp_path_factory):
    """The folder of packed files as the site has it."""
    folder = tmp_path_factory.mktemp("models")
    live_models.write_models(folder, weights)
    return folder


@pytest.fixture(scope="module")
def reference(models, tmp_path_factory):
    """Model name -> what PyTorch makes of the very file that the page reads."""
    loaded = {}

    def load(name):
        if name not in loaded:
            folder = tmp_path_factory.mktemp(name)
            (folder / "model.safetensors").symlink_to(models / f"{name}.safetensors")
            loaded[name] = TilelliLM.from_pretrained(folder)
        return loaded[name]

    return load


@pytest.fixture(scope="module")
def html(build):
    done, html = build
    assert (html / "index.html").exists(), done.stdout[-2000:] + done.stderr[-4000:]
    return html


@pytest.fixture(scope="module")
def served(html, models):
    """The site in a folder of its server, as on GitHub Pages."""
    server = LiveServer(html, "/owner/book", models)
    yield server
    server.close()


@pytest.fixture
def server(html, models):
    """A server for one test alone, which may damage files; the site is at its root."""
    server = LiveServer(html, "", models)
    yield server
    server.close()


def new_page(chromium, **options):
    """A page that keeps what went wrong in `errors`."""
    context = chromium.new_context(
        **{"viewport": WIDE, "reduced_motion": "reduce", **options}
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    return page


@pytest.fixture
def page(chromium):
    page = new_page(chromium)
    yield page
    page.context.close()


@pytest.fixture(scope="module")
def engine(chromium, served):
    """A page in which the engine and the worker's page side can be called."""
    page = new_page(chromium)
    page.goto(f"{served.address}/book/talk.html", wait_until="commit")
    page.evaluate(
        """async (root) => {
            window.engine = await import(`${root}/_static/live/engine.js`);
            window.model = await import(`${root}/_static/live/model.js`);
            window.chat = await import(`${root}/_static/live/chat.js`);
            window.models = Object.fromEntries(
                (await model.model_list()).map((entry) => [entry.name, entry]));
            // runs a generator of the engine to its end
            window.finish = (steps) => {
                for (;;) {
                    const { done, value } = steps.next();
                    if (done) return value;
                }
            };
            window.network = async (name) => {
                const file = await fetch(`${root}/_static/models/${name}.safetensors`);
                return new engine.Network(await file.arrayBuffer());
            };
        }""",
        served.address,
    )
    yield page
    assert page.errors == []
    page.context.close()


# Numbers


@pytest.mark.parametrize("name", SIZES)
def test_the_logits_are_those_of_pytorch(engine, reference, name):
    prompts = [list(prompt) for prompt in PROMPTS.values()]
    found = engine.evaluate(
        """async ([name, prompts]) => {
            const lm = await network(name);
            return prompts.map((ids) => [...finish(engine.prefill_prompt(lm, ids))]);
        }""",
        [name, prompts],
    )
    lm = reference(name)
    for title, ids, logits in zip(PROMPTS, prompts, found, strict=True):
        _, wanted = prefill_prompt(lm, ids, rows=1)
        assert (torch.tensor(logits) - wanted[0]).abs().max() < LIMIT, title


def written(engine, name, prompt, sampling):
    """The records of the bytes that the page writes after `prompt`, by its worker."""
    return engine.evaluate(
        """async ([name, ids, sampling]) => {
            const records = [];
            const on = { part: (part) => records.push(...part.records) };
            const end = await model.write(models[name], ids, sampling, on);
            return [...records, ...end.records].map(
                (record) => ({ ...record, p: [...record.p], places: [...record.places],
                    weights: [...record.weights] }));
        }""",
        [name, list(prompt), sampling],
    )


@pytest.fixture(scope="module")
def logits_before(reference):
    """(model name, prompt, new bytes) -> PyTorch's logits (n, 256) before each of the new
    bytes, in float64, as `stream` computes them.
    """

    @functools.cache
    def read(name, prompt, new):
        form = reference(name).fast_form()
        rows = []
        state, logits = prefill_prompt(form, list(prompt), rows=1)
        for byte in new:
            rows.append(logits[0].double())
            logits = form.step(torch.tensor([byte]), state)
        return torch.stack(rows)

    return read


@pytest.mark.parametrize("name", SIZES)
def test_three_hundred_greedy_bytes_are_those_of_pytorch(engine, logits_before, name):
    """At each byte, PyTorch would have taken the same one after the same text, with the
    same probability: a window that is wrong by one byte changes that first.
    """
    prompt = PROMPTS["a beginning"]
    sampling = {"max_new": 300, "temperature": 0, "stop": []}
    records = written(engine, name, prompt, sampling)
    new = [record["byte"] for record in records]
    assert len(new) == 300 and len(prompt) + 300 > 256 + 1  # a window was read again
    near_ties = 0
    rows = logits_before(name, prompt, bytes(new))
    for count, (record, logits) in enumerate(zip(records, rows, strict=True)):
        byte = record["byte"]
        if byte != logits.argmax():
            near_ties += 1
            assert logits.max() - logits[byte] < LIMIT
        assert record["chance"] == pytest.approx(
            float(logits.softmax(-1)[byte]), abs=1e-4
        )
        assert record["first"] == window_start(len(prompt) + count)
    assert near_ties <= 2


def splitmix64(seed):
    """The generator of Steele, Lea and Flood, 2014, as numbers of 64 bits."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


def test_the_random_numbers_are_those_of_splitmix64(engine):
    numbers = splitmix64(1234567)
    # as published with the reference implementation
    assert [next(numbers) for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    found = engine.evaluate(
        """() => {
            const generator = new engine.SplitMix64(1234567);
            return Array.from({ length: 50 }, () => generator.uniform());
        }"""
    )
    numbers = splitmix64(1234567)
    assert found == [(next(numbers) >> 11) / 2**53 for _ in range(50)]


@pytest.mark.parametrize(
    "limits", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 40, "top_p": 0.9}], ids=str
)
def test_a_seed_draws_what_the_page_says_it_draws(engine, logits_before, limits):
    """The rule in words on the page, and the package's own probabilities."""
    prompt, seed = PROMPTS["a beginning"], 7
    sampling = {"max_new": 60, "temperature": 1.1, "seed": seed, "stop": [], **limits}
    new = [record["byte"] for record in written(engine, "nano", prompt, sampling)]
    rule = Sampling(temperature=1.1, **limits)
    numbers = splitmix64(seed)
    rows = logits_before("nano", prompt, bytes(new))
    for byte, logits in zip(new, rows, strict=True):
        running = probabilities(logits, rule).cumsum(0)
        drawn = (next(numbers) >> 11) / 2**53
        # where the number falls on a border, either side will do
        assert running[byte] > drawn - 1e-5
        assert byte == 0 or running[byte - 1] <= drawn + 1e-5
    assert new == [r["byte"] for r in written(engine, "nano", prompt, sampling)]


def test_what_a_byte_was_made_of_is_what_pytorch_says(engine, reference):
    """The pathways, the kept places and the probabilities beside each new byte."""
    prompt = PROMPTS["more than it keeps"]
    sampling = {"max_new": 5, "temperature": 0, "stop": []}
    records = written(engine, "nano", prompt, sampling)
    ids = [*prompt, *(record["byte"] for record in records)]
    lm = reference("nano")
    for count, record in enumerate(records):
        seen = torch.tensor([ids[: len(prompt) + count]])
        with torch.no_grad():
            h, p = lm.hidden(seen)
            chances = lm.logits(h[0, -1]).double().softmax(-1)
        wanted = p[0, :, -1].flatten()
        assert torch.allclose(torch.tensor(record["p"]), wanted, atol=1e-4)
        top = chances.topk(5)
        assert [byte for byte, _ in record["likeliest"]] == top.indices.tolist()
        for (_, share), chance in zip(
            record["likeliest"], top.values.tolist(), strict=True
        ):
            assert share == pytest.approx(chance, abs=1e-4)
        places = torch.tensor(record["places"]).view(4, 4, 16)
        shares = torch.tensor(record["weights"]).view(4, 4, 16)
        assert torch.allclose(shares.sum(-1), torch.ones(4, 4), atol=1e-5)
        # a weight that fp32 rounds to 0 counts as dropped
        for found, wanted in zip(
            places.flatten(0, 1), kept_by_hand(lm, seen), strict=True
        ):
            assert set(found.tolist()) - {-1} <= set(wanted)


def kept_by_hand(lm, seen):
    """Of each block and head, the places of the 16 best scores at the last byte."""
    kept = []
    h = lm.token(seen) + lm.position.weight[: seen.shape[1]]
    with torch.no_grad():
        for block in lm.blocks:
            q, k, _ = (block.norm(h) @ block.attention.weight.T).chunk(3, dim=-1)
            for head in range(4):
                part = slice(32 * head, 32 * head + 32)
                scores = k[0, :, part] @ q[0, -1, part]
                kept.append(sorted(scores.topk(16).indices.tolist()))
            h, _ = block(h)
    return kept


def test_unpacking_and_thresholds_by_hand(engine):
    """The values of the contract: five codes a byte, and the k-th of fewer than k."""
    found = engine.evaluate(
        """() => [
            [...engine.unpack(new Uint8Array([221]), 5)], [...engine.unpack(new Uint8Array([0]), 5)],
            [...engine.unpack(new Uint8Array([242]), 5)], [...engine.unpack(new Uint8Array([124]), 2)],
            engine.kth_largest([3, 1, 2, 3], 2), engine.kth_largest([3, 1, 2], 5),
            [256, 257, 384, 385, 513].map((n) => engine.window_start(n, 256)),
            [256, 7, 1].map(engine.window_stride),
        ]"""
    )
    assert found == [
        [1, 0, -1, 1, 1],
        [-1] * 5,
        [1] * 5,
        [0, 1],
        3,
        1,
        [0, 128, 128, 256, 384],
        [128, 4, 1],
    ]


# The chat


def odd_questions():
    """Questions with all that could be mistaken for structure, and of many lengths."""
    pieces = [
        "USER:",
        "tilelli :",
        "u s e r:",
        "T\nI l e l l ı:",
        "\u017fer",
        "\0",
        "\n",
    ]
    pieces += [
        "é",
        "😀",
        "\u2003",
        "\u00a0",
        "\ufeff",
        "\x85",
        "a word ",
        "?",
        "  ",
        "x" * 50,
    ]
    draw = random.Random(5)
    for _ in range(150):
        yield "".join(draw.choices(pieces, k=draw.randrange(9)))
    yield "a" * 50 + "\ufeff" + "x" * 157  # the last 160 bytes begin with a mark


def test_a_conversation_becomes_the_same_bytes(engine):
    questions = list(odd_questions())
    history = [("Who are you?", "A model."), ("USER: x", "y\nTILELLI: z" * 9)]
    found = engine.evaluate(
        """([questions, history]) => questions.map((question) => [
            chat.clean_question(question), chat.encode_prompt(question, history)])""",
        [questions, history],
    )
    for question, (cleaned, prompt) in zip(questions, found, strict=True):
        wanted = template.clean_question(question)
        assert cleaned["text"] == wanted.text, question
        assert cleaned["notes"] == list(wanted.notes), question
        assert prompt == template.encode_prompt(question, history).tolist()


@pytest.mark.parametrize("threshold", [None, 0.0, 0.5, 1.1])
def test_a_greedy_answer_and_its_certainty_are_the_package_s(
    engine, reference, threshold
):
    gate = None if threshold is None else Gate("margin", threshold)
    question = "Where does the little fox live?"
    history = [("Who is Pip?", "A fox.")]
    wanted = Conversation(reference("nano-chat"), gate, history=history).ask(question)
    request = {
        "question": question,
        "history": history,
        "temperature": 0,
        "seed": 0,
        "gate": gate and gate._asdict(),
    }
    reply = engine.evaluate(
        """async (request) => {
            const { reply } = await model.ask(models["nano-chat"], request);
            return { ...reply, said: new TextDecoder().decode(new Uint8Array(reply.said)),
                held_back: reply.held_back
                    && new TextDecoder().decode(new Uint8Array(reply.held_back)) };
        }""",
        request,
    )
    assert reply["said"] == wanted.text
    assert reply["held_back"] == wanted.held_back
    assert reply["margin"] == pytest.approx(wanted.margin, abs=1e-4)


# The page


def press_write(page, *, prompt="Once upon a time", length=50, temperature=0.5):
    """Writes on the page "Talk to it here", and waits until it has."""
    page.get_by_label("Beginning:").fill(prompt)
    page.get_by_label("Temperature:").first.fill(str(temperature))
    page.get_by_label("Bytes at most:").fill(str(length))
    page.get_by_role("button", name="Write").click()
    page.wait_for_selector(".live-buttons button:first-child:enabled")


def status(page):
    return page.locator(".live-status").first.inner_text().strip()


def open_talk(page, server):
    page.goto(f"{server.address}/book/talk.html", wait_until="commit")
    page.wait_for_selector("#talk .live-status", state="attached")


def violations(page, inside):
    answer = Axe().run(page, context=inside, options={"resultTypes": ["violations"]})
    found = answer.response["violations"]
    return [(v["id"], [n["html"][:160] for n in v["nodes"][:3]]) for v in found]


def test_talk_writes_and_says_why(page, server):
    """By the keyboard alone, wide and narrow, in both schemes."""
    open_talk(page, server)
    assert server.fetched() == []  # nobody has used it yet
    beginning = page.get_by_label("Beginning:")
    beginning.fill("Once there was a little fox named ")
    page.get_by_label("Bytes at most:").fill("100")
    page.get_by_role("button", name="Write").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".live-buttons button:first-child:enabled")
    assert re.fullmatch(r"(The text ended: )?\d+ new bytes.*", status(page))
    assert len(server.fetched()) == 1
    text = page.locator(".live-text").first
    assert text.inner_text().startswith("Once there was a little fox named ")
    count = text.locator("span[data-byte]").count()
    assert 10 < count <= 100
    page.get_by_label("Byte:").focus()
    why = page.locator(".live-why")
    last = why.inner_text()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert why.inner_text() != last and "2 of " in why.inner_text()
    assert why.get_by_role("row").count() >= 5 + 1 + 4  # bytes, a head, blocks
    framed = "[...document.querySelectorAll('.live-text span')].filter(s => s.style.boxShadow).length"
    everywhere = page.evaluate(framed)
    page.get_by_label("Block:").select_option("4")
    assert 1 <= page.evaluate(framed) < everywhere
    text.locator("span[data-byte='5']").click()
    assert "6 of " in why.inner_text()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
        assert violations(page, "#talk") == []
    page.set_viewport_size(NARROW)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    assert page.errors == []


def test_a_long_text_can_be_stopped_and_begun_again(page, server):
    open_talk(page, server)
    picker = page.get_by_label("Model:").first
    label = picker.locator("option", has_text="lite-10m").inner_text()
    picker.select_option(label=label)
    page.get_by_label("Bytes at most:").fill("2000")
    page.get_by_label("Temperature:").first.fill("1")
    page.get_by_role("button", name="Write").click()
    page.wait_for_selector(".live-text span[data-byte]")
    page.get_by_role("button", name="Stop").first.click()
    page.wait_for_selector(".live-buttons button:first-child:enabled")
    # an untrained model may also have drawn byte 0 before
    assert status(page).startswith(("Stopped:", "The text ended:"))
    picker.select_option(index=0)
    press_write(page, length=50)
    assert "new bytes" in status(page) and page.errors == []


def test_the_keyboard_keeps_its_place(page, server):
    """A button is disabled while its job runs; after that the focus is on it again."""
    open_talk(page, server)
    page.get_by_label("Bytes at most:").fill("50")
    write = page.get_by_role("button", name="Write")
    write.focus()
    for _ in range(2):
        page.keyboard.press("Enter")
        page.wait_for_selector("text=/new bytes/")
        page.wait_for_selector(".live-buttons button:first-child:enabled")
        assert page.evaluate("document.activeElement.textContent") == "Write"
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("Your question:").fill("Who is Pip?")
    page.get_by_role("button", name="Ask").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".live-log meter")
    page.wait_for_selector(".live-form .live-buttons button:first-child:enabled")
    assert page.evaluate("document.activeElement.textContent") == "Ask"
    assert page.errors == []


@pytest.mark.parametrize(
    "typed, used", [("-5", "0"), ("1.7", "1"), ("", "0"), ("1e30", str(2**53 - 1))]
)
def test_the_seed_that_is_used_stands_in_its_field(page, server, typed, used):
    open_talk(page, server)
    page.get_by_label("Seed:").fill(typed)
    press_write(page)
    assert page.get_by_label("Seed:").input_value() == used and page.errors == []


def test_a_long_beginning_does_not_stop_the_page(page, server):
    """The theme's icons look through a text again for every element put into it."""
    open_talk(page, server)
    press_write(page)  # the weights are here now
    long = "Zoë saw a fox. " * 800
    press_write(page, prompt=long)
    text = page.locator(".live-text").first
    assert text.inner_text().startswith(long)
    # an element for each byte would stop the page for half a minute
    assert text.locator("span").count() < 256 + 50 + 2
    # what the attention kept of the beginning is still framed
    page.get_by_label("Byte:").fill("1")
    framed = """[...document.querySelectorAll('.live-prompt')]
        .filter((span) => span.style.boxShadow).length"""
    assert page.evaluate(framed) > 0 and page.errors == []


def test_the_chat_tab_answers_and_doubts(page, server):
    open_talk(page, server)
    page.get_by_role("tab", name="Write").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_label("Your question:").fill("Who is Pip?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".live-log meter")
    log = page.get_by_role("log")
    assert "USER: Who is Pip?" in log.inner_text()
    page.wait_for_selector(".live-form .live-buttons button:first-child:enabled")
    assert log.locator("p").get_attribute("aria-busy") == "false"
    before = log.inner_text().count("I don't know.")
    page.get_by_label("“I don't know” below:").fill("1")
    page.get_by_label("Your question:").fill("What is a fox?")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=held back:")
    assert log.inner_text().count("I don't know.") == before + 1
    assert violations(page, "#talk") == []
    page.get_by_role("button", name="Forget").click()
    assert log.inner_text().strip() == "" and page.errors == []


def open_chat(page, server):
    """The chat tab, in a page that keeps what is sent to its worker."""
    page.add_init_script(
        """window.sent = [];
        const post = Worker.prototype.postMessage;
        Worker.prototype.postMessage = function (message, ...more) {
            window.sent.push(JSON.stringify(message));
            return post.call(this, message, ...more);
        };"""
    )
    open_talk(page, server)
    page.get_by_role("tab", name="Chat").click()


def ask_on_page(page, question):
    page.get_by_label("Your question:").fill(question)
    page.keyboard.press("Enter")


def sent_with(page, question):
    """What the worker was sent beside this question."""
    (sent,) = [
        message
        for message in map(json.loads, page.evaluate("window.sent"))
        if question in json.dumps(message)
    ]
    return json.dumps(sent)


def test_each_chat_model_has_its_own_threshold(page, server, models):
    open_chat(page, server)
    listed = json.loads((models / "models.json").read_text())["models"]
    chats = [model for model in listed if model["chat"]]
    picker = page.locator("#panel-Chat").get_by_label("Model:")
    slider = page.get_by_label("“I don't know” below:")
    for place, model in enumerate(chats):
        picker.select_option(index=place)
        threshold = model["gate"]["threshold"] if model["gate"] else 0
        assert float(slider.input_value()) == pytest.approx(threshold, abs=0.0051)
    picker.select_option(index=0)
    ask_on_page(page, "Who is Pip?")
    page.wait_for_selector(".live-log meter")
    # not the slider's, which has two digits
    assert str(chats[0]["gate"]["threshold"]) in sent_with(page, "Who is Pip?")
    assert page.errors == []


def test_a_turn_that_was_forgotten_while_it_was_answered_stays_forgotten(page, server):
    open_chat(page, server)
    button = ".live-form .live-buttons button:first-child"
    ask_on_page(page, "Who is Pip?")
    page.get_by_role("button", name="Forget").click()  # the model is on its way
    page.wait_for_selector(f"{button}:enabled")
    ask_on_page(page, "What is a fox?")
    page.wait_for_selector(".live-log meter")
    page.wait_for_selector(f"{button}:enabled")
    assert "Pip" not in sent_with(page, "What is a fox?")
    ask_on_page(page, "And a dog?")
    page.wait_for_selector(f"{button}:enabled")
    assert "What is a fox?" in sent_with(page, "And a dog?")
    assert page.errors == []


@pytest.mark.parametrize(
    "script, name", [("talk", "book/talk"), ("chapter", "notebooks/00_welcome")]
)
def test_scripts_that_do_not_load_leave_a_message(page, server, script, name):
    server.instead[f"_static/live/{script}.js"] = None
    page.goto(f"{server.address}/{name}.html", wait_until="commit")
    page.wait_for_selector("text=could not be started")
    assert page.errors == []


def test_without_a_model_that_answers_there_is_no_chat_tab(page, server, models):
    listed = json.loads((models / "models.json").read_text())
    listed["models"] = [model for model in listed["models"] if not model["chat"]]
    server.instead[f"{MODELS}models.json"] = json.dumps(listed).encode()
    open_talk(page, server)
    assert page.get_by_role("tab").count() == 0


def test_the_site_lists_the_bundled_models_and_fetches_each_once(html, page):
    """With the models that the build itself has written, and the browser's own cache."""
    listed = json.loads((html / MODELS / "models.json").read_text())["models"]
    assert sorted(model["name"] for model in listed) == [p.name for p in BUNDLED]
    own = LiveServer(html)
    for _ in range(2):
        open_talk(page, own)
        press_write(page)
    own.close()
    first = next(model for model in listed if not model["chat"])
    assert own.fetched() == [f"{MODELS}{first['file']}"] and page.errors == []


# What goes wrong


def damaged(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    return bytes(data)


@pytest.mark.parametrize("kind", ["damaged", "cut off", "too long", "missing"])
def test_bad_weights_give_one_message_and_good_ones_then_work(
    page, server, models, kind
):
    path = models / "nano.safetensors"
    data = path.read_bytes()
    server.instead[f"{MODELS}nano.safetensors"] = {
        "damaged": damaged(path),
        "cut off": data[:-1000],
        "too long": data + b"more",
        "missing": None,
    }[kind]
    open_talk(page, server)
    press_write(page)
    said = "could not be fetched" if kind == "missing" else "arrived damaged"
    assert said in status(page) and "make book" in status(page)
    assert page.locator(".live-error").count() == 1
    server.instead.clear()
    press_write(page)
    assert page.locator(".live-error").count() == 0
    assert "new bytes" in status(page) and page.errors == []


def test_a_question_that_could_not_be_answered_can_be_asked_again(page, server):
    server.instead[f"{MODELS}nano-chat.safetensors"] = None
    open_chat(page, server)
    ask_on_page(page, "Who is Pip?")
    page.wait_for_selector("#panel-Chat .live-error")
    assert page.get_by_role("log").inner_text().strip() == ""
    assert page.get_by_label("Your question:").input_value() == "Who is Pip?"
    server.instead.clear()
    page.keyboard.press("Enter")
    page.wait_for_selector(".live-log meter")
    assert page.get_by_role("log").locator("p").count() == 1 and page.errors == []


@pytest.mark.parametrize("name", ["book/talk", "notebooks/00_welcome"])
@pytest.mark.parametrize("data", [None, b"{ no list"], ids=["missing", "damaged"])
def test_without_its_list_of_models_a_page_says_so(page, server, name, data):
    server.instead[f"{MODELS}models.json"] = data
    page.goto(f"{server.address}/{name}.html", wait_until="commit")
    page.wait_for_selector(".live-error")
    assert page.locator(".live-error").count() == 1
    assert "models.json" in page.locator(".live-error").inner_text()
    assert page.errors == []


@pytest.mark.parametrize("name", ["book/talk", "notebooks/00_welcome"])
def test_a_page_opened_as_a_file_says_what_to_do(page, html, name):
    page.goto((html / f"{name}.html").as_uri(), wait_until="commit")
    page.wait_for_selector("text=make serve")
    assert page.locator(".live-note", has_text="make serve").count() == 1
    assert page.get_by_role("button", name=re.compile("Write|Continue")).count() == 0
    assert page.errors == []


def hold_weights(page):
    """Requests for weights wait; what is returned lets one through, and later ones."""
    held = []
    page.context.route("**/*.safetensors*", lambda route: held.append(route))

    def release():
        held.pop().continue_()
        page.context.unroute("**/*.safetensors*")

    return release


def test_while_nothing_has_come_yet_a_page_says_what_it_waits_for(page, server):
    release = hold_weights(page)
    open_talk(page, server)
    page.get_by_label("Bytes at most:").fill("50")
    page.get_by_role("button", name="Write").click()
    page.wait_for_selector("text=Fetching nano")
    page.get_by_role("tab", name="Chat").click()
    ask_on_page(page, "Who is Pip?")
    page.wait_for_selector("text=Another widget is at work")
    release()
    page.wait_for_selector(".live-log meter")
    assert page.get_by_text("Another widget is at work").count() == 0
    page.get_by_role("tab", name="Write").click()
    assert "new bytes" in status(page) and page.errors == []


# The widgets of the chapters


def open_chapter(page, server, name, kind):
    """The live widget of a kind on a chapter; formulas are not what is tested here."""
    page.route("**/mathjax/**", lambda route: route.abort())
    page.goto(f"{server.address}/notebooks/{name}.html", wait_until="commit")
    return page.locator(f".live[data-live={kind}]")


@pytest.mark.parametrize(
    "name, kind", [("00_welcome", "continue_text"), ("13_running", "stream_text")]
)
def test_continue_my_text_goes_on(page, server, name, kind):
    widget = open_chapter(page, server, name, kind)
    box = widget.get_by_role("textbox")
    box.fill("Tom was a tall boy. ")
    assert server.fetched() == []
    widget.get_by_role("button", name="Continue").click()
    page.wait_for_selector(f".live[data-live={kind}] button:first-child:enabled")
    first = widget.locator(".live-text").inner_text()
    assert first.startswith("Tom was a tall boy. ") and len(first) > 100
    widget.get_by_role("button", name="Continue").click()
    page.wait_for_selector(f".live[data-live={kind}] button:first-child:enabled")
    assert widget.locator(".live-text").inner_text() != first  # the next seed
    coloured = widget.locator(".live-text span[style*=background]").count()
    assert (coloured > 0) == (kind == "stream_text")
    assert violations(page, f".live[data-live={kind}]") == [] and page.errors == []


def test_the_routed_text_follows_its_controls(page, server, reference):
    widget = open_chapter(page, server, "07_router", "routed_text")
    text = "Pip saw a fox."
    widget.get_by_role("textbox").fill(text)
    widget.get_by_role("combobox").select_option(label="block 2")
    page.wait_for_selector(".live-legend b:text('Block 2')")
    with torch.no_grad():
        _, p = reference("nano").hidden(torch.tensor([list(text.encode())]))
    means = [f"{float(share):.0%}" for share in p[0, 1].mean(0)]
    assert re.findall(r"\d+%", widget.locator(".live-legend").inner_text()) == means
    assert widget.locator(".live-text").inner_text() == text
    assert violations(page, ".live[data-live=routed_text]") == []
    assert page.errors == []


def test_the_routed_text_says_when_it_is_empty_or_too_long(page, server):
    widget = open_chapter(page, server, "07_router", "routed_text")
    said = widget.locator(".live-status")
    text = widget.get_by_role("textbox")
    text.fill("a")
    page.wait_for_selector(".live[data-live=routed_text] .live-legend")
    legend = widget.locator(".live-legend").inner_text()
    text.fill("")
    page.wait_for_selector("text=There is no text")
    assert widget.locator(".live-legend").inner_text() == legend  # and not 0%
    text.fill("é" * 200)
    page.wait_for_selector("text=The first 256 bytes")
    assert widget.locator(".live-text").inner_text() == "é" * 128
    text.fill("Pip")
    page.wait_for_function(
        """document.querySelector('.live[data-live=routed_text] .live-text')
            .textContent === 'Pip'"""
    )
    assert said.inner_text().strip() == "" and page.errors == []


def test_the_probabilities_follow_their_sliders(page, server, reference):
    widget = open_chapter(page, server, "13_running", "sampling_player")
    prompt = "Once upon a time there was a "
    assert widget.get_by_role("textbox").input_value() == prompt
    widget.get_by_label("top-k:").fill("3")
    widget.get_by_label("Temperature:").fill("1.5")
    page.wait_for_selector("text=3 of 256 bytes can be drawn")
    with torch.no_grad():
        logits = reference("nano")(torch.tensor([list(prompt.encode())]))[0, -1]
    wanted = probabilities(logits, Sampling(temperature=1.5, top_k=3))
    row = widget.get_by_role("row").nth(1).inner_text().split()
    best = int(logits.argmax())
    assert row[0] == chr(best)
    assert float(row[-1].rstrip("%")) == pytest.approx(
        100 * float(wanted[best]), abs=0.06
    )
    assert violations(page, ".live[data-live=sampling_player]") == []
    assert page.errors == []


def test_a_page_without_a_live_widget_asks_for_no_model(page, server):
    for name in ("notebooks/01_bytes", "book/references"):
        page.goto(f"{server.address}/{name}.html", wait_until="load")
        page.wait_for_load_state("networkidle")
    assert not [asked for asked in server.asked if asked.startswith(MODELS)]


def test_the_widget_manager_comes_only_where_it_draws(page, server):
    manager = "_static/vendor/html-manager/embed-amd.js"
    if not offline.present():
        pytest.skip("the widget manager comes from a CDN")
    for name in ("notebooks/00_welcome", "notebooks/13_running"):
        page.goto(f"{server.address}/{name}.html", wait_until="networkidle")
        assert page.locator(".live[data-live]").count() > 0
    assert manager not in server.asked
    page.goto(f"{server.address}/notebooks/01_bytes.html", wait_until="load")
    page.wait_for_selector(".live-still .jupyter-widgets", state="visible")
    assert server.asked.count(manager) == 1 and page.errors == []


# Without a browser


def test_the_pages_pack_as_the_package_does(weights, models, reference, tmp_path):
    """The same codes and rows; the scale of a ternary matrix up to its last bit, since
    PyTorch adds up in fp32.
    """
    TilelliLM.from_pretrained("tilelli/nano").save_packed(tmp_path)
    wanted = TilelliLM.from_pretrained(tmp_path).state_dict()
    found = reference("nano").state_dict()
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name].sign(), tensor.sign()), name
        assert torch.allclose(found[name], tensor, rtol=2e-7, atol=0), name
    # packed already: copied
    lite = (weights / "lite-10m" / "model.safetensors").read_bytes()
    assert (models / "lite-10m.safetensors").read_bytes() == lite


ENGINE = pairs.ROOT / "book" / "_static" / "live" / "engine.js"
TWIN = re.compile(
    r"^// (tilelli_nb/\S+\.py) · chapter (\d\d)\n"
    r"export (?:class|function\*?) (\w+)",
    re.MULTILINE,
)


def test_every_part_of_the_engine_names_its_python_twin_and_its_chapter():
    source = ENGINE.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 500
    exported = re.findall(r"^export (?:class|function\*?) (\w+)", source, re.MULTILINE)
    twins = {name: (file, chapter) for file, chapter, name in TWIN.findall(source)}
    # PyTorch has its own generator, and no chapter is about errors
    assert set(exported) - set(twins) == {"SplitMix64", "CheckpointError"}
    for name, (file, chapter) in twins.items():
        python = (pairs.ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^(class|def) {name}\b", python, re.MULTILINE), name
        pages = list((pairs.ROOT / "book").glob(f"{chapter}_*.md"))
        assert any(name in page.read_text(encoding="utf-8") for page in pages), name


def test_what_the_page_says_of_the_ternary_product_is_in_the_record():
    text = (pairs.ROOT / "book" / "talk.md").read_text(encoding="utf-8")
    assert "about two fifths of the time of the plain product" in text
    assert "a little more than\nhalf of the time of adding and subtracting" in text
    record = pairs.ROOT / "book" / "runs" / "bench-live" / "results.json"
    times = json.loads(record.read_text())["products_ms"]
    total = {
        way: times[f"384 -> 1536, {way}"] + times[f"1536 -> 384, {way}"]
        for way in ("table of sums", "lists to add and subtract", "fp32 numbers")
    }
    assert total["table of sums"] / total["fp32 numbers"] == pytest.approx(0.4, rel=0.1)
    assert total["table of sums"] / total["lists to add and subtract"] == pytest.approx(
        0.55, rel=0.1
    )
