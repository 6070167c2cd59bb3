"""The lab: a study of tiny runs comes out the same again, interrupted or not; what it
removes is gone; two arms that are the same differ in nothing.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import lab
import lab_results
import lab_run
import lab_study
from lab_variants import CHANGES, PIECES, VARIANTS, Curriculum, build, text_for
from tilelli_nb import TilelliLM, load_config, load_record, prepare_shards
from tilelli_nb.config import Config
from tilelli_nb.errors import ConfigError
from tilelli_nb.evaluation.paired import compare
from tilelli_nb.model.router import PATHWAYS
from tilelli_nb.storage.records import KEYS, load_metrics
from tilelli_nb.training.loop import train

TEXT = [f"Number {i} is {i * i} when it is squared. " * 5 for i in range(60)]
TINY = {
    "d_model": 16,
    "n_blocks": 2,
    "n_heads": 2,
    "keep": 4,
    "context": 32,
    "batch": 4,
}
STUDY = {
    "name": "tiny",
    "question": "Does any of this matter at a size at which nothing does?",
    "settings": TINY,
    "bytes": 32 * 4 * 6,
    "seeds": [1, 2, 3],
    "evaluations": 3,
    "base": "full",
    "tune": {"lr": [1e-3, 1e-2], "seed": 0},
    "arms": {"full": {}, "same": {}},
    "factors": {"variant": ["no-conv"], "keep": [1]},
    "together": "best",
    "target": "full",
    "claims": {"part": ["no-conv", "full"]},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return prepare_shards(TEXT, tmp_path_factory.mktemp("text") / "squares", "squares")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("studies") / "tiny.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


def a_lab(shards, out, minutes=10.0, workers=1):
    return lab.Lab(shards, out, minutes, workers)


@pytest.fixture(scope="module")
def done(shards, file, tmp_path_factory):
    """The folder of a lab in which the study was made, and its results."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")
    return out, a_lab(shards, out).study(lab_study.load_study(file))


def without_times(folder):
    """All that runs say which does not depend on the clock, by file."""
    found = {}
    for path in sorted(folder.rglob("*.json*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "metrics.jsonl":
            lines = load_metrics(path.parent)
            found[name] = [{**line, "wall_s": 0} for line in lines]
        elif path.name == "results.json" and path.parent != folder:
            found[name] = {**json.loads(path.read_text()), "cpu_s": 0}
    return found


# A study, and its records


def test_every_run_leaves_a_record_of_the_usual_form(done):
    out, results = done
    folders = sorted(path.parent for path in out.glob("lab-tiny/*/run.json"))
    names = [folder.name for folder in folders]
    arms = ("full", "same", "no-conv", "keep-1")
    assert set(names) >= {f"{arm}-s{seed}" for arm in arms for seed in (1, 2, 3)}
    assert {"full-lr0.001-s0", "full-lr0.01-s0"} < set(names)
    for folder in folders:
        record = load_record(folder)
        assert tuple(record) == KEYS and record["finished"]
        assert record["name"] == f"lab-tiny/{folder.name}"
        assert record["steps"] == 6 and record["bytes_seen"] == STUDY["bytes"]
        assert Config.from_dict(record["config"]).train.seed == record["seed"]
        assert [line["step"] for line in load_metrics(folder)] == [2, 4, 6]
    assert tuple(load_record(out / "lab-tiny")) == KEYS
    assert results["arms"]["full"]["runs"] == [f"lab-tiny/full-s{s}" for s in (1, 2, 3)]


def test_the_table_and_the_results_follow_from_the_records(done):
    out, results = done
    bits = {
        arm: [
            load_record(out / "lab-tiny" / f"{arm}-s{s}")["val_bpb"] for s in (1, 2, 3)
        ]
        for arm in ("full", "no-conv")
    }
    assert results["arms"]["no-conv"]["val_bpb"] == bits["no-conv"]
    differences = np.subtract(bits["no-conv"], bits["full"])
    row = results["comparisons"]["no-conv"]
    # Student's t for 2 degrees of freedom and 95%, from a printed table
    half = 4.302653 * differences.std(ddof=1) / math.sqrt(3)
    assert row["against"] == "full" and row["n"] == 3
    assert row["mean"] == pytest.approx(differences.mean())
    assert row["high"] - row["mean"] == pytest.approx(half, rel=1e-6)
    assert results["claims"]["part"]["low"] == row["low"]
    text = lab_results.table(results)
    assert f"{row['mean']:+.4f} ± {half:.4f}" in text
    assert all(len(line) <= 79 for line in text.splitlines())
    cpu_s = sum(
        json.loads(f.read_text())["cpu_s"] for f in out.glob("*/*/results.json")
    )
    assert results["cpu_minutes"] == pytest.approx(cpu_s / 60, abs=0.01) and cpu_s > 0
    assert f"{results['cpu_minutes']:.1f} CPU minutes" in text


def test_the_base_is_tuned_and_the_others_take_its_rate(done):
    out, results = done
    tried = {
        value: load_record(out / "lab-tiny" / f"full-lr{value:g}-s0")["val_bpb"]
        for value in (1e-3, 1e-2)
    }
    best = min(tried, key=tried.get)
    assert (
        results["tuned"]["full"]["best"] == best and results["tuned"]["full"]["at_edge"]
    )
    for run in ("full-s1", "no-conv-s3", "keep-1-s2"):
        config = load_record(out / "lab-tiny" / run)["config"]
        assert config["train"]["lr"] == best


def test_two_arms_that_are_the_same_differ_in_nothing(done):
    row = done[1]["comparisons"]["same"]
    assert (row["mean"], row["low"], row["high"]) == (0, 0, 0)
    assert row["p_t"] == row["p_sign"] == 1


def test_the_same_arm_with_other_seeds_finds_nothing(shards, tmp_path):
    """Labels without meaning: twelve runs of one arm, half of them called another."""
    values = STUDY | {
        "seeds": list(range(1, 13)),
        "arms": {"full": {}},
        "factors": {},
        "claims": {},
        "evaluations": 1,
    }
    path = tmp_path / "one_arm.yaml"
    path.write_text(yaml.safe_dump(values | {"tune": {"lr": [1e-2], "seed": 0}}))
    study = lab_study.load_study(path)
    bits = a_lab(shards, tmp_path).study(study)["arms"]["full"]["val_bpb"]
    assert len(set(bits)) == 12
    dealt = np.random.default_rng(0).permutation(bits)
    found = compare(dealt[:6], dealt[6:])
    assert found.low < 0 < found.high and min(found.p_t, found.p_sign) > 0.05


# Again, and after an interruption


def test_a_run_is_repeated_bit_for_bit_from_its_record_alone(done, shards, capsys):
    out, _ = done
    for name in ("no-conv-s2", "full-s1"):
        folder = out / "lab-tiny" / name
        assert lab_run.again(folder, str(shards.folder), 1.0)
        bits = load_record(folder)["val_bpb"]
        said = f"lab-tiny/{name}: recorded {bits!r}, now {bits!r}; the same to the last"
        assert said in capsys.readouterr().out
    # and without the lab: the seed and the configuration are all there is to it
    record = load_record(out / "lab-tiny" / "full-s1")
    lm = TilelliLM(Config.from_dict(record["config"]))
    plain = train(lm, shards, out / "plain", progress=False)
    assert plain["val_bpb"] == record["val_bpb"]


def test_a_figure_that_was_changed_is_noticed(done, shards, tmp_path, capsys):
    out, _ = done
    folder = tmp_path / "no-conv-s2"
    lab_run.shutil.copytree(out / "lab-tiny" / "no-conv-s2", folder)
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace('"val_bpb": ', '"val_bpb": 1'))
    assert not lab_run.again(folder, str(shards.folder), 1.0)
    assert "not the same" in capsys.readouterr().out


class Killed(BaseException):
    """As if the process were gone."""


def test_a_study_that_was_killed_goes_on_as_if_nothing_had_been(
    done, shards, file, tmp_path, monkeypatch
):
    study, steps = lab_study.load_study(file), []

    def train_until_killed(*args, **more):
        def on_log(line):
            steps.append(line["step"])
            if len(steps) == 20:  # in the middle of a run
                raise Killed

        return train(*args, **more, on_log=on_log)

    monkeypatch.setattr(lab_run, "train", train_until_killed)
    with pytest.raises(Killed):
        a_lab(shards, tmp_path).study(study)
    kept = sorted(path.parent.name for path in tmp_path.glob("lab-tiny/*/run.json"))
    assert 0 < len(kept) < 14 and not (tmp_path / "lab-tiny" / "results.json").exists()
    written = {
        name: (tmp_path / "lab-tiny" / name / "run.json").stat() for name in kept
    }
    monkeypatch.setattr(lab_run, "train", train)
    results = a_lab(shards, tmp_path).study(study)
    for name, before in written.items():  # what was done is not done again
        now = (tmp_path / "lab-tiny" / name / "run.json").stat()
        assert (now.st_mtime_ns, now.st_ino) == (before.st_mtime_ns, before.st_ino)
    unbroken, whole = done
    assert without_times(tmp_path / "lab-tiny") == without_times(unbroken / "lab-tiny")
    assert results["comparisons"] == whole["comparisons"]


def test_two_workers_find_what_one_finds(done, shards, file, tmp_path):
    a_lab(shards, tmp_path, workers=2).study(lab_study.load_study(file))
    assert without_times(tmp_path / "lab-tiny") == without_times(done[0] / "lab-tiny")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_workers_end_with_the_lab_even_if_it_is_killed(shards, file, tmp_path):
    command = [sys.executable, lab.__file__, str(file), "--corpus", str(shards.folder)]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()  # the first run is done: the workers are there
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = [int(number) for number in children.read_text().split()]
    process.kill()
    # the pipe has an end only when nobody holds it any more
    rest, _ = process.communicate(timeout=60)
    assert len(workers) >= 2 and "All studies" not in rest


def test_a_budget_that_is_spent_stops_and_the_next_one_goes_on(shards, file, tmp_path):
    study = lab_study.load_study(file)
    with pytest.raises(lab.BudgetSpent):
        a_lab(shards, tmp_path, minutes=1e-6).study(study)
    made = list(tmp_path.glob("lab-tiny/*/run.json"))
    assert len(made) == 1  # how long one takes is not known before the first
    a_lab(shards, tmp_path).study(study)
    assert (tmp_path / "lab-tiny" / "results.json").is_file()


def test_a_rate_at_which_all_breaks_down_is_a_result(shards, tmp_path):
    """Before its first evaluation; and again when the study is looked at once more."""
    study = STUDY | {"name": "broken", "settings": TINY | {"lr": 1e30}}
    study |= {"tune": None, "factors": {}, "together": None, "claims": {}}
    study = {key: value for key, value in study.items() if value is not None}
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(study))
    for _ in range(2):
        found = a_lab(shards, tmp_path / "out").study(lab_study.load_study(path))
        assert found["arms"]["full"]["val_bpb"] == [None] * 3
        assert found["to_target"] is None and found["arms"]["full"]["curve"] == []


def test_when_every_rate_that_was_tried_breaks_down_it_says_so(file):
    arm = next(arm for arm in lab_study.load_study(file).arms if arm.tuning)
    with pytest.raises(ConfigError, match="every lr that full tried"):
        lab_results.best_value(arm, {1.0: None, 2.0: None})


def test_a_record_from_before_a_setting_there_is_now_is_passed_over(done, shards):
    """As those of the book are, which know nothing of softening."""
    out, _ = done
    path = out / "lab-tiny" / "full-s1" / "run.json"
    before = path.read_text()
    record = json.loads(before)
    job = lab_study.Job(
        "tiny", "full-s1", "full", Config.from_dict(record["config"]), ()
    )
    del record["config"]["train"]["qk_scale"]
    path.write_text(json.dumps(record))
    assert a_lab(shards, out).is_done(job)
    path.write_text(before)


def test_a_record_of_other_settings_is_refused(done, shards, tmp_path):
    out, _ = done
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"settings": TINY | {"weight_decay": 0.5}}))
    with pytest.raises(ConfigError, match="lab-tiny/.* was made with other settings"):
        a_lab(shards, out).study(lab_study.load_study(path))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"bas": "full"}, "unknown configuration key bas"),
        ({"base": "fully"}, "tiny has no arm 'fully'"),
        ({"arms": {"full": {}, "x": {"keeps": 3}}}, "unknown configuration key keeps"),
        ({"arms": {"full": {}, "x": {"variant": "no-con"}}}, "variant no-con"),
        ({"arms": {"full": {}, "keep-1": {}}}, "tiny has an arm twice"),
        ({"tune": {"lr": [1e-3], "seed": 2}}, "tuned with seed 2, which counts too"),
        ({"settings": TINY | {"keep": 64}}, "keep = 64 keys of a context of 32"),
        ({"seeds": 3}, "seeds = 3"),
        ({"seeds": []}, "seeds = "),
        ({"arms": ["full"]}, "arms of tiny.yaml holds list"),
        ({"arms": {"full": "routed"}}, "the arm full holds str"),
        ({"tune": {"lr": [1e-3], "clip": [1.0]}}, "tune of tiny.yaml is"),
        ({"factors": {"keep": 4}}, "the factor keep is 4"),
        ({"name": "../x"}, "name = '../x'"),
    ],
    ids=str,
)
def test_a_study_that_cannot_be_is_refused(tmp_path, change, said):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(STUDY | change))
    with pytest.raises(ConfigError, match=said):
        lab_study.load_study(path)


@pytest.mark.parametrize("key", ["question", "bytes", "seeds", "arms"])
def test_a_study_names_what_it_cannot_do_without(tmp_path, key):
    path = tmp_path / "tiny.yaml"
    rest = {name: value for name, value in STUDY.items() if name != key}
    path.write_text(yaml.safe_dump(rest))
    with pytest.raises(ConfigError, match=f"tiny.yaml has no {key}"):
        lab_study.load_study(path)


def test_the_levels_of_a_factor_may_be_words(tmp_path):
    path = tmp_path / "tiny.yaml"
    factors = {"schedule": ["cosine", "wsd"]}
    study = STUDY | {"factors": factors, "claims": {}}
    path.write_text(yaml.safe_dump(study))
    names = [arm.name for arm in lab_study.load_study(path).arms]
    assert names[-2:] == ["schedule-cosine", "schedule-wsd"]


@pytest.mark.parametrize("name", lab.ORDER)
def test_the_studies_of_the_book_can_be_read(name):
    study = lab_study.load_study(name)
    for arm in study.arms:
        jobs = lab_study.jobs_of(study, arm, {})
        assert len({job.name for job in jobs}) == len(study.seeds) >= 3
        read = {j.config.train.steps * j.config.train.batch * 256 for j in jobs}
        assert read == {study.bytes}  # every run reads as much


# What the figures mean


def test_when_a_curve_gets_there():
    points = [{"bytes": b, "val_bpb": v} for b, v in ((10, 4.0), (20, 3.0), (30, 2.9))]
    assert lab_results.bytes_until(points, 3.5) == pytest.approx(15)
    assert lab_results.bytes_until(points, 5.0) == 10
    assert lab_results.bytes_until(points, 2.9) == pytest.approx(30)
    assert lab_results.bytes_until(points, 2.8) is None


def test_together_takes_the_best_level_of_each_factor_that_surely_helps(file):
    study = lab_study.load_study(file)
    row = {"against": "full", "mean": -0.02, "low": -0.03, "high": -0.01}
    found = {"no-conv": row, "keep-1": row | {"high": 0.001}, "same": row}
    chosen = lab_results.helpful(study, found)
    assert [arm.name for arm in chosen] == ["no-conv"]  # `same` is of no factor
    found["keep-1"] = row
    arm = lab.combined(study, lab_results.helpful(study, found))
    assert arm.variants == ("no-conv",) and arm.changes == {"keep": 1}
    config = lab_study.config_of(study, arm, 1, {"full": {"lr": 0.5}})
    assert config.model.keep == 1 and config.train.lr == 0.5
    fast = lab_study.load_study("fast")
    found = {"batch-4": row, "batch-16": row | {"mean": -0.025}, "cosine": row}
    chosen = lab_results.helpful(fast, found)
    assert [arm.name for arm in chosen] == ["cosine", "batch-16"]


# What is removed is gone


def tiny(**changes):
    values = {key: TINY[key] for key in ("d_model", "n_blocks", "n_heads", "keep")}
    config = load_config("nano").with_model(**values, context=32)
    return config.with_train(**changes)


def some_bytes():
    return torch.randint(0, 256, (3, 32), generator=torch.Generator().manual_seed(0))


def awake(lm):
    """Routers that prefer something: they begin even."""
    for number, (name, weight) in enumerate(lm.named_parameters()):
        if "router" in name:
            dice = torch.Generator().manual_seed(number)
            weight.data.normal_(0, 0.5, generator=dice)
    return lm


@pytest.mark.parametrize("pathway", PATHWAYS)
def test_a_pathway_that_is_removed_has_no_weights_no_share_and_no_effect(pathway):
    config, x = tiny(), some_bytes()
    lm, whole = build(config, (f"no-{pathway}",)), TilelliLM(config)
    assert not [name for name, _ in lm.named_parameters() if f".{pathway}." in name]
    awake(lm)
    _, p = lm.hidden(x)
    which = PATHWAYS.index(pathway)
    assert torch.equal(p[..., which], torch.zeros_like(p[..., which]))
    assert torch.allclose(p.sum(-1), torch.ones(p.shape[:-1]))
    # what is left begins as in the whole model
    own = whole.state_dict()
    for name, tensor in build(config, (f"no-{pathway}",)).state_dict().items():
        assert torch.equal(tensor, own[name])
    # the pathway of the whole model behind the same router: no gradient, no effect
    before = lm(x)
    for block, donor in zip(lm.blocks, whole.blocks, strict=True):
        setattr(block, pathway, getattr(donor, pathway))
    lm.loss_terms(x, x).nats.backward()
    weights = [p for n, p in lm.named_parameters() if f".{pathway}." in n]
    assert weights and not any(w.grad.abs().max() for w in weights)
    with torch.no_grad():
        for weight in weights:
            weight.mul_(-3).add_(1)
    assert torch.equal(lm(x), before)
    others = [n for n, p in lm.named_parameters() if p.grad is None or not p.grad.any()]
    assert {name.split(".")[2] for name in others if "blocks" in name} <= {pathway}


def test_without_a_pathway_the_block_is_the_sum_of_the_other_two():
    lm = awake(build(tiny(), ("no-attention",)).double())
    x = torch.randn(2, 32, 16, dtype=torch.float64)
    block = lm.blocks[0]
    y = block.norm(x)
    logits = y @ block.router.weight.T
    up = logits.exp()
    first = (up[..., 0] / (up[..., 0] + up[..., 2]))[..., None]
    by_hand = x + first * block.conv(y) + (1 - first) * block.ffn(y)
    assert torch.allclose(block(x)[0], by_hand, atol=1e-6)


def test_the_uniform_router_has_nothing_to_learn():
    lm, x = build(tiny(), ("uniform-router",)), some_bytes()
    assert not [name for name, _ in lm.named_parameters() if "router" in name]
    _, p = lm.hidden(x)
    assert torch.equal(p, torch.full_like(p, 1 / 3))
    # as every model is before its first step
    assert torch.allclose(lm(x), TilelliLM(tiny())(x), atol=1e-5)


def test_the_plain_ffn_multiplies_by_the_latent_weights():
    lm, whole = build(tiny(), ("fp32-ffn",)), TilelliLM(tiny())
    ffn, y = lm.blocks[0].ffn, torch.randn(2, 5, 16)
    up, down = ffn.up.weight, ffn.down.weight
    assert torch.equal(up, whole.blocks[0].ffn.up.weight)
    by_hand = torch.nn.functional.gelu(y @ up.T) @ down.T
    assert torch.allclose(ffn(y), by_hand, atol=1e-6)
    assert len(torch.unique(up)) > 3 and lm.zero_shares() == []
    assert len(torch.unique(whole.blocks[0].ffn.up.ternary_weight())) == 3
    ffn(y).sum().backward()
    assert up.grad is not None


def test_keep_of_the_whole_context_is_dense_attention():
    lm = TilelliLM(tiny().with_model(keep=32))
    attention, y = lm.blocks[0].attention, torch.randn(2, 32, 16)
    heads = (2, 32, 2, 8)
    parts = (y @ attention.weight.T).chunk(3, dim=-1)
    q, k, v = (part.view(heads).transpose(1, 2) for part in parts)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    joined = dense.transpose(1, 2).reshape(2, 32, 16)
    assert torch.allclose(attention(y), joined, atol=1e-5)


def test_first_weights():
    plain = dict(TilelliLM(tiny()).named_parameters())
    small = dict(build(tiny(), ("small-init",)).named_parameters())
    name = "blocks.0.ffn.down.weight"  # (16, 64): drawn with 64^-0.5 = 1/8
    assert torch.allclose(small[name], plain[name] * 0.02 * 8)
    assert torch.equal(small["token.weight"], plain["token.weight"])
    assert torch.equal(small["norm.weight"], plain["norm.weight"])
    lm = build(tiny(), ("zero-output",))
    terms = lm.loss_terms(some_bytes(), some_bytes())
    assert terms.nats.item() / terms.predicted.item() == pytest.approx(math.log(256))


def test_the_curriculum_cuts_the_same_windows_shorter_at_first(shards):
    config = tiny(steps=6)
    reading = text_for(shards, config, ("curriculum",))
    assert isinstance(reading, Curriculum)
    one, other = (torch.Generator().manual_seed(7) for _ in range(2))
    for step in range(6):
        whole, cut = shards.batch(4, 32, one), reading.batch(4, 32, other)
        for long, short in zip(whole, cut, strict=True):
            rows = 4 * PIECES if step < 3 else 4
            assert short.shape == (rows, 128 // rows)
            assert torch.equal(short.flatten(), long.flatten())
    assert text_for(shards, config, ("no-conv",)) is shards


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(variant, shards, tmp_path):
    config = tiny(
        steps=4, batch=4, micro_batch=16, eval_every=4, eval_bytes=300, log_every=1
    )
    lm = build(config, (variant,))
    before = {name: p.detach().clone() for name, p in lm.named_parameters()}
    reading = text_for(shards, config, (variant,))
    record = train(lm, reading, tmp_path / "run", progress=False)
    assert record["finished"] and math.isfinite(record["val_bpb"])
    still = [n for n, p in lm.named_parameters() if torch.equal(p, before[n])]
    assert still == [] and set(CHANGES) < set(VARIANTS)
