"""The Hugging Face Hub, stood in for by a server on this machine that speaks as much of
its language as is needed.
"""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.errors import CheckpointError, MissingDependency
from tilelli_nb.storage.hub import download, model_card, upload
from tilelli_nb.storage.records import new_record

pytest.importorskip("huggingface_hub")
SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: {"owner/name": {"file": bytes}}. Large files come in the
    commit, as small ones do.
    """

    repositories: dict[str, dict[str, bytes]] = {}
    private: set[str] = set()

    def answer(self, body, status=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "X-Repo-Commit": SHA,
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        data, path = (
            self.rfile.read(int(self.headers.get("Content-Length", 0))),
            self.path.split("?")[0],
        )
        if self.headers.get("Authorization") != "Bearer hf_test":
            return self.answer({"error": "who are you?"}, 401)
        if path == "/api/repos/create":
            about = json.loads(data)
            name = f"{about.get('organization') or 'me'}/{about['name']}"
            if name not in self.repositories:  # one that exists stays what it is
                self.repositories[name] = {}
                # the library says it in one way or the other, by its version
                if about.get("private") or about.get("visibility") == "private":
                    self.private.add(name)
            return self.answer(
                {"url": f"http://{self.headers['Host']}/{name}", "name": name}
            )
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            return self.answer(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "regular",
                            "shouldIgnore": False,
                        }
                        for file in json.loads(data)["files"]
                    ]
                }
            )
        for line in map(json.loads, data.splitlines()):  # /commit/
            if line["key"] == "deletedFile":
                del self.repositories[name][line["value"]["path"]]
            if line["key"] == "file":
                self.repositories[name][line["value"]["path"]] = base64.b64decode(
                    line["value"]["content"]
                )
        url = f"http://{self.headers['Host']}/{name}/commit/{SHA}"
        return self.answer({"commitUrl": url, "commitOid": SHA, "success": True})

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.repositories.get(name)
        if files is None:
            return self.answer(
                {"error": "no such repository"}, 404, **{"X-Error-Code": "RepoNotFound"}
            )
        if parts[0] == "api" and "tree" in parts:
            return self.answer(
                [
                    {"type": "file", "path": file, "oid": SHA, "size": len(data)}
                    for file, data in files.items()
                ]
            )
        if parts[0] == "api":
            return self.answer(
                {
                    "id": name,
                    "sha": SHA,
                    "private": name in self.private,
                    "siblings": [{"rfilename": file} for file in files],
                }
            )
        data = files["/".join(parts[4:])]
        return self.answer(data, ETag=f'"{hash(data) & 0xFFFFFFFF:08x}"')

    do_HEAD = do_GET

    def log_message(self, *about):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


THERE_AND_BACK = """
import sys, torch
from tilelli_nb import TilelliLM, load_config
from tilelli_nb.errors import CheckpointError
small = load_config("nano").with_model(d_model=16, n_blocks=1, n_heads=2, context=32)
for name, lm in (("me/small", TilelliLM(small)), ("me/packed", None)):
    if lm is None:
        TilelliLM(small).save_packed(sys.argv[1])
        lm = TilelliLM.from_pretrained(sys.argv[1])
        lm.sampling_defaults = {"temperature": 0.3}
    print(lm.push_to_hub(name))
    again = TilelliLM.from_pretrained(name)
    back = again.state_dict()
    same = all(torch.allclose(w, back[key], atol=1e-6) for key, w in lm.state_dict().items())
    print(same and again.sampling_defaults == lm.sampling_defaults)
# what else lies in a folder stays here
from pathlib import Path
from tilelli_nb.storage.hub import upload
Path(sys.argv[1], "diary.txt").write_text("mine")
upload(Path(sys.argv[1]), "me/folder")
try:
    TilelliLM.from_pretrained("me/nothing")
except CheckpointError as error:
    print(error.problem)
"""


def run_with(hub, tmp_path, script):
    """What a script says that uses the server; its argument is the folder packed/."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "packed")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_there_and_back(hub, tmp_path):
    done = run_with(hub, tmp_path, THERE_AND_BACK)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line in ("True", "False")] == ["True", "True"], (
        done.stdout + done.stderr[-2000:]
    )
    assert (
        lines[-1].startswith("there is no model 'me/nothing'")
        and "RepositoryNotFoundError" in lines[-1]
    )
    assert sorted(Hub.repositories["me/folder"]) == ["config.json", "model.safetensors"]
    for name in ("me/small", "me/packed"):
        files = Hub.repositories[name]
        own = ["generation_config.json"] if name == "me/packed" else []
        assert sorted(files) == sorted(
            ["README.md", "config.json", "model.safetensors", *own]
        )
        assert f'from_pretrained("{name}")' in files["README.md"].decode()
        assert json.loads(files["config.json"])["model"]["d_model"] == 16


WITH_ALL_THAT_IS_KNOWN = """
import json, os, sys
from typer.testing import CliRunner
from tilelli_nb import TilelliLM, load_config
from tilelli_nb.cli.app import app
from tilelli_nb.files import write_atomic
from tilelli_nb.inference.chatting import Gate, read_gate, write_gate
from tilelli_nb.pretrained import load_model, resolve
from tilelli_nb.storage.records import dumps, new_record

def tilelli(*arguments):
    done = CliRunner().invoke(app, arguments, input="/quit", catch_exceptions=False)
    assert done.exit_code == 0, done.output

folder = sys.argv[1]
sizes = dict(d_model=16, n_blocks=1, n_heads=2, context=32)
for block in ("routed", "vanilla"):
    small = load_config("nano").with_model(**sizes, block=block)
    note = TilelliLM(small).save_packed(folder, "some text", val_bpb=2.25)
    write_gate(folder, Gate("margin", 0.625))
    write_atomic(folder + "/SOURCES.md", b"By Ada.\\n")
    tilelli("push", folder, f"me/{block}")
    back = load_model(f"me/{block}")[1]
    print(back == {"config": small.to_dict(), "val_bpb": 2.25, "packed": note})
    print("bits_per_byte" in note)
print(read_gate(resolve("me/routed")) == Gate("margin", 0.625))
tilelli("chat", "--model", "me/routed", "--gate")
plain = folder + "-not"
TilelliLM(small).save_pretrained(plain, val_bpb=3.5)
data = dict(source="mine.txt", train_bytes=9, val_bytes=1, sha256="ab" * 32)
record = new_record("it", "train", config=small.to_dict(), data=data)  # of a killed run
write_atomic(plain + "/run.json", dumps(record))
tilelli("push", plain, "me/plain", "--private")
print(load_model("me/plain")[1] == {"config": small.to_dict(), "val_bpb": 3.5})
print(read_gate(resolve("me/plain")) is None)
"""


def test_what_is_known_of_a_model_goes_along(hub, tmp_path):
    """The metadata of its file, what packing cost, and its gate."""
    done = run_with(hub, tmp_path, WITH_ALL_THAT_IS_KNOWN)
    assert done.stdout.split() == ["True"] * 7, done.stdout + done.stderr[-2000:]
    gated, plain = (Hub.repositories[name] for name in ("me/routed", "me/plain"))
    assert "me/plain" in Hub.private and "me/routed" not in Hub.private
    assert json.loads(gated["gate.json"]) == {"signal": "margin", "threshold": 0.625}
    assert gated["SOURCES.md"] == b"By Ada.\n"  # and me/plain has none
    assert sorted(plain) == ["README.md", "config.json", "model.safetensors"]
    assert "| time | not finished |" in plain["README.md"].decode()


ONE_AFTER_THE_OTHER = """
import sys
from tilelli_nb import TilelliLM, load_config
from tilelli_nb.inference.chatting import Gate
small = load_config("nano").with_model(d_model=16, n_blocks=1, n_heads=2)
lm = TilelliLM(small)
lm.sampling_defaults = {"temperature": 0.5}
lm.push_to_hub("me/again", gate=Gate("margin", 0.5))
TilelliLM(small).push_to_hub("me/again")
"""


IN_PRIVATE = """
from tilelli_nb import TilelliLM, load_config
from tilelli_nb.errors import CheckpointError
lm = TilelliLM(load_config("nano").with_model(d_model=16, n_blocks=1, n_heads=2))
lm.push_to_hub("me/secret", private=True)
lm.push_to_hub("me/secret", private=True)
try:
    lm.push_to_hub("me/open", private=True)
except CheckpointError as error:
    print(error)
"""


def test_what_should_be_private_is_not_put_where_everybody_reads(hub, tmp_path):
    """The Hub leaves a repository that exists as visible as it was, without a word."""
    Hub.repositories["me/open"] = {}
    done = run_with(hub, tmp_path, IN_PRIVATE)
    assert "me/open is on the Hub already" in done.stdout, done.stderr[-2000:]
    assert "model.safetensors" in Hub.repositories["me/secret"]
    assert Hub.repositories["me/open"] == {}


def test_a_newer_model_is_not_left_with_the_gate_of_an_older_one(hub, tmp_path):
    Hub.repositories["me/again"] = {"notes.txt": b"somebody's own"}
    done = run_with(hub, tmp_path, ONE_AFTER_THE_OTHER)
    assert done.returncode == 0, done.stderr[-2000:]
    own = ["README.md", "config.json", "model.safetensors"]
    assert sorted(Hub.repositories["me/again"]) == sorted([*own, "notes.txt"])


@pytest.mark.parametrize(
    "call",
    [
        lambda: download("me/small"),
        lambda: TilelliLM.from_pretrained("me/small"),
        lambda: upload(__file__, "me/small"),
    ],
)
def test_no_network_is_one_clear_error(call, monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", offline)
    with pytest.raises(CheckpointError, match=r"ConnectionError"):
        call()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependency, match="huggingface_hub"):
        call()


def test_a_card_says_what_the_record_says():
    record = {
        "data": {
            "source": "stories",
            "train_bytes": 9_500_000,
            "val_bytes": 500_000,
            "sha256": "ab" * 32,
        },
        "steps": 1200,
        "bytes_seen": 2_457_600,
        "seed": 7,
        "val_bpb": 1.23456,
        "wall_s": 600,
        "device": "cpu",
        "gpu_name": None,
        "bytes_per_s": 4096.0,
        "usd": None,
        "git": "abc",
        "package_sha256": "cd" * 32,
        "notes": "",
    }
    config = load_config("nano").to_dict()
    card = model_card("me/it", config, 824_576, record)
    assert (
        card.startswith("---\nlicense: apache-2.0\n")
        and "# it\n" in card
        and "824,576 parameters" in card
    )
    for part in (
        "stories, 9,500,000 bytes",
        "1,200, 2,457,600 bytes, seed 7",
        "1.2346 bits per byte",
        "10 minutes on a CPU",
        "4,096 bytes/s",
        "not billed",
        "commit abc",
    ):
        assert part in card, part
    on_a_mac = model_card("me/it", config, 824_576, record | {"device": "mps"})
    assert "10 minutes on a Mac's GPU" in on_a_mac
    assert "| notes" not in card and "held out" not in model_card(
        "me/it", config, 824_576
    )


def test_a_card_of_a_run_that_has_not_finished():
    """As its record is from the first step on, until it ends or is stopped."""
    config = load_config("nano").to_dict()
    corpus = {"source": "stories", "train_bytes": 900, "val_bytes": 100}
    data = {**corpus, "sha256": "ab" * 32}
    record = new_record("it", "train", config=config, seed=7, data=data)
    card = model_card("me/it", config, 824_576, record)
    for line in (
        "| trained on | stories, 900 bytes (sha256 abababababab…) |",
        "| steps | not finished, seed 7 |",
        "| held out | not measured, of 100 bytes that are not trained on |",
        "| time | not finished |",
        "| cost | not finished |",
    ):
        assert line in card, line
