"""Other people's machines: RunPod through a stand-in for its package, the Slurm job
through ones for its programs.
"""

import inspect
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from tilelli_nb import address
from tilelli_nb.cli import runpod as commands
from tilelli_nb.cli.app import app
from tilelli_nb.errors import MissingDependency, RentalError
from tilelli_nb.extras import runpod

KEY = "rpa_SECRETSECRETSECRET"
RUNNING = {
    "id": "abc123",
    "name": "tilelli",
    "desiredStatus": "RUNNING",
    "costPerHr": 0.4,
    "volumeInGb": 20,
    "machine": {"gpuDisplayName": "RTX A6000"},
    "runtime": {
        "uptimeInSeconds": 7200,
        "gpus": [{"gpuUtilPercent": 97}],
        "ports": [
            {
                "ip": "100.65.0.1",
                "isIpPublic": False,
                "privatePort": 8888,
                "publicPort": 60001,
            },
            {
                "ip": "213.1.2.3",
                "isIpPublic": True,
                "privatePort": 22,
                "publicPort": 17445,
            },
        ],
    },
}
STOPPED = RUNNING | {"id": "old1", "desiredStatus": "EXITED", "runtime": None}


class Fake(ModuleType):
    """Module runpod 1.12 as far as it is used here. `calls` is what it was asked, with
    the key it was asked with.
    """

    def __init__(self):
        super().__init__("runpod")
        self.calls, self.found, self.error, self.api_key = (
            [],
            [RUNNING, STOPPED],
            None,
            None,
        )

    def note(self, function, /, **options):
        self.calls.append(
            (
                function,
                self.api_key,
                {k: v for k, v in options.items() if v is not None},
            )
        )
        if self.error:
            raise self.error

    def get_gpu(self, gpu_id: str, gpu_quantity: int = 1, api_key=None):
        self.note("get_gpu", gpu_id=gpu_id)
        return {"communityPrice": 0.33, "securePrice": 0.49}

    def create_pod(
        self,
        name,
        image_name="",
        gpu_type_id=None,
        cloud_type="ALL",
        support_public_ip=True,
        start_ssh=True,
        data_center_id=None,
        country_code=None,
        gpu_count=1,
        volume_in_gb=0,
        container_disk_in_gb=None,
        min_vcpu_count=1,
        min_memory_in_gb=1,
        docker_args="",
        ports=None,
        volume_mount_path="/runpod-volume",
        env=None,
        template_id=None,
        network_volume_id=None,
        allowed_cuda_versions=None,
        min_download=None,
        min_upload=None,
        instance_id=None,
    ):
        self.note("create_pod", **{k: v for k, v in locals().items() if k != "self"})
        return {"id": "new1", "machineId": "m"}

    def stop_pod(self, pod_id: str):
        self.note("stop_pod", pod_id=pod_id)
        return {"id": pod_id, "desiredStatus": "EXITED"}

    def terminate_pod(self, pod_id: str):
        self.note("terminate_pod", pod_id=pod_id)

    def run_graphql_query(self, query: str, api_key=None):
        self.note("run_graphql_query", query=query)
        return {"data": {"myself": {"pods": self.found}}}


@pytest.fixture
def fake(monkeypatch):
    module, graphql = Fake(), ModuleType("runpod.api.graphql")
    graphql.run_graphql_query = module.run_graphql_query
    for part in (module, ModuleType("runpod.api"), graphql):
        monkeypatch.setitem(sys.modules, part.__name__, part)
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    for name in ("JUPYTER_PASSWORD", "TILELLI_USD_PER_HOUR", "TILELLI_PRICES"):
        monkeypatch.delenv(name, raising=False)
    return module


def tilelli(*arguments, stdin=None):
    done = CliRunner().invoke(app, ["runpod", *arguments], input=stdin)
    assert KEY not in done.output + str(done.exception)
    return done


def test_the_real_package_has_these_signatures():
    real = pytest.importorskip(
        "runpod", reason="the package runpod is optional: pip install runpod"
    )
    from runpod.api.graphql import run_graphql_query

    for name in (
        "get_gpu",
        "create_pod",
        "stop_pod",
        "terminate_pod",
        "run_graphql_query",
    ):
        theirs = inspect.signature(getattr(real, name, run_graphql_query)).parameters
        ours = list(inspect.signature(getattr(Fake, name)).parameters.values())[1:]
        assert [(p.name, p.default) for p in ours] == [
            (p.name, p.default) for p in theirs.values()
        ], name


def test_up_only_says_what_it_would_do(fake):
    done = tilelli("up")
    assert [call[0] for call in fake.calls] == ["get_gpu"] and done.exit_code == 0
    assert (
        "NVIDIA RTX A6000, community cloud" in done.output
        and "$0.33 an hour (RunPod, now)" in done.output
    )
    assert "volume $2.00 a month, $4.00 while the pod is stopped" in done.output
    assert (
        "IT STOPS AFTER 12 HOURS" in done.output and "nothing was rented" in done.output
    )
    assert "$0.49 an hour" in tilelli("up", "--cloud", "SECURE").output
    assert "NOTHING STOPS IT BUT YOU" in tilelli("up", "--stop-after", "0").output


def test_without_a_key_the_price_is_the_books_and_nothing_is_asked(fake, monkeypatch):
    monkeypatch.delenv("RUNPOD_API_KEY")
    monkeypatch.setenv("TILELLI_USD_PER_HOUR", "0.37")
    done = tilelli("up")
    assert "$0.37 an hour (TILELLI_USD_PER_HOUR" in done.output and not fake.calls
    monkeypatch.delenv("TILELLI_USD_PER_HOUR")
    assert "$0.40 an hour (the book's table" in tilelli("up").output
    for command in (["up", "--yes"], ["status"], ["down", "x", "--yes"]):
        error = tilelli(*command).exception
        assert isinstance(error, RentalError) and "RUNPOD_API_KEY is not set" in str(
            error
        )


def test_up_rents_what_was_said(fake):
    done = tilelli(
        "up",
        "--yes",
        "--gpu",
        "NVIDIA A40",
        "--volume",
        "30",
        "--train",
        "make pretrain",
    )
    name, key, options = fake.calls[-1]
    assert (name, key, options["gpu_type_id"], options["cloud_type"]) == (
        "create_pod",
        KEY,
        "NVIDIA A40",
        "COMMUNITY",
    )
    assert options["image_name"] == "runpod/pytorch:1.3.2-cu1281-torch2130-ubuntu2404"
    assert (options["volume_in_gb"], options["volume_mount_path"]) == (30, "/workspace")
    assert (
        options["ports"] == "8888/http,22/tcp"
        and "make pretrain" in options["docker_args"]
    )
    assert options["allowed_cuda_versions"] == ["12.8", "12.9", "13.0", "13.1", "13.2"]
    assert (
        len(password := options["env"]["JUPYTER_PASSWORD"]) >= 16
        and password not in done.output
    )
    assert "rented: new1" in done.output and "tilelli runpod down new1" in done.output


@pytest.mark.parametrize(
    "image, versions",
    [
        ("runpod/pytorch:1.4.0-cu1300-torch2130-ubuntu2404", ["13.0", "13.1", "13.2"]),
        ("runpod/pytorch:2.1.0-py3.10-cuda11.8.0-devel-ubuntu22.04", None),
        ("pytorch/pytorch", ["12.8", "12.9", "13.0", "13.1", "13.2"]),
    ],
)
def test_the_host_must_have_the_cuda_of_the_image(fake, image, versions):
    tilelli("up", "--yes", "--image", image)
    assert fake.calls[-1][2].get("allowed_cuda_versions") == versions


def test_status_counts_hours_and_dollars(fake):
    lines = tilelli("status").output.splitlines()
    assert (
        lines[0]
        == "abc123 tilelli: RUNNING, RTX A6000, in use 97%, 2.0 hours at $0.40: $0.80"
    )
    assert lines[1] == "  ssh root@213.1.2.3 -p 17445"
    assert (
        lines[2]
        == "old1 tilelli: EXITED, RTX A6000, in use unknown, 0.0 hours at $0.40: $0.00"
    )
    fake.found = []
    assert tilelli("status").output == "no pods: nothing is billed\n"


@pytest.mark.parametrize(
    "programs, expected",
    [
        (
            ("rsync",),
            "rsync -avz -e 'ssh -p 17445' root@213.1.2.3:/workspace/tilelli-book/runs/big/ runs/big/",
        ),
        (
            (),
            "scp -r -P 17445 root@213.1.2.3:/workspace/tilelli-book/runs/big/. runs/big",
        ),
    ],
)
def test_fetch_says_and_runs_the_copy(fake, monkeypatch, tmp_path, programs, expected):
    ran = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        commands.shutil, "which", lambda name: name if name in programs else None
    )
    monkeypatch.setattr(
        commands.subprocess,
        "run",
        lambda command: (
            ran.append(command) or subprocess.CompletedProcess(command, len(ran) - 1)
        ),
    )
    assert tilelli("fetch", "abc123", "runs/big").output == expected + "\n" and not ran
    assert tilelli("fetch", "abc123", "runs/big", "--yes").exit_code == 0
    assert ran == [shlex.split(expected)] and (tmp_path / "runs" / "big").is_dir()
    assert "the copy failed" in str(
        tilelli("fetch", "abc123", "runs/big", "--yes").exception
    )


@pytest.mark.parametrize(
    "pod, message", [("old1", "has no public SSH port"), ("nobody", "does not exist")]
)
def test_fetch_needs_a_running_pod(fake, pod, message):
    assert message in str(tilelli("fetch", pod, "runs/x").exception)


def test_down_asks_and_says_loudly_what_it_does(fake):
    done = tilelli("down", "abc123", stdin="n\n")
    assert (
        "THIS STOPS POD abc123" in done.output
        and "costs $0.20 per GB" in done.output
        and not fake.calls
    )
    # nobody there to answer
    assert tilelli("down", "abc123", stdin="").exit_code != 0 and not fake.calls
    tilelli("down", "abc123", stdin="y\n")
    assert fake.calls.pop()[::2] == ("stop_pod", {"pod_id": "abc123"})
    done = tilelli("down", "abc123", "--terminate", "--yes")
    assert "EVERYTHING ON ITS VOLUME" in done.output
    assert fake.calls.pop()[::2] == ("terminate_pod", {"pod_id": "abc123"})


def test_an_error_of_the_api_is_one_message_without_the_key(fake):
    fake.error = ValueError(f"no GPU found for Bearer {KEY}")
    assert "RunPod: no GPU found for Bearer ..." in str(tilelli("up").exception)


def test_without_the_package_the_way_to_it_is_named(fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "runpod", None)
    error = tilelli("status").exception
    assert isinstance(
        error, MissingDependency
    ) and 'pip install "tilelli-nb[runpod]"' in str(error)


@pytest.mark.parametrize("train", ["echo 'a'", 'echo "a"', "a\nb", "a\\b"])
def test_a_command_that_the_api_would_garble_is_refused(fake, train):
    assert isinstance(tilelli("up", "--train", train).exception, RentalError)


@pytest.fixture(autouse=True)
def an_address(monkeypatch):
    """Of a book that a pod could fetch."""
    monkeypatch.setattr(address, "REPOSITORY", "https://example.org/a/b")


def run_start(tmp_path, command, make_fails=False):
    """Runs a start command here: the programs of a pod only note that they were
    called.
    """
    (tmp_path / "bin").mkdir(exist_ok=True)
    for name, body in {
        "git": "mkdir tilelli-book",
        "make": "false" if make_fails else "true",
        "start.sh": "wait",
        # a runpodctl that knows the newer word order only
        "runpodctl": '[ "$1" = pod ]',
    }.items():
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/log\n{body}\n')
        script.chmod(0o755)
    argv = shlex.split(
        command.replace("/workspace", str(tmp_path)).replace(
            "exec /start.sh", "wait; start.sh"
        )
    )
    env = os.environ | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "RUNPOD_POD_ID": "me",
    }
    subprocess.run(argv, env=env, check=True, timeout=60)
    return (tmp_path / "log").read_text().splitlines()


def test_a_pod_stops_itself_after_a_time(tmp_path):
    command = runpod.start_command(0.0001, "")
    assert command.startswith(
        "bash -c '(sleep 0;"
    ) and "(sleep 5400;" in runpod.start_command(1.5, "")
    assert run_start(tmp_path, command) == [
        "runpodctl stop pod me",
        "runpodctl pod stop me",
        "start.sh ",
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_a_pod_trains_and_then_stops_itself(tmp_path, fails):
    """Also when the set-up fails: a pod that does nothing is billed like any other."""
    log = run_start(tmp_path, runpod.start_command(0, "make pretrain"), fails)
    assert log == [
        "git clone https://example.org/a/b tilelli-book",
        "make pod",
        *["make pretrain"] * (not fails),
        "runpodctl stop pod me",
        "runpodctl pod stop me",
        "start.sh ",
    ]
    assert (tmp_path / "train.log").is_file()
    # to fetch the weights
    assert run_start(tmp_path, runpod.start_command(0, "make pretrain")) == [
        *log,
        "start.sh ",
    ]


def test_a_pod_that_was_taken_away_goes_on_training(tmp_path):
    (tmp_path / "tilelli-book").mkdir()
    log = run_start(tmp_path, runpod.start_command(0, "make pretrain"))
    assert log[:2] == ["make pod", "make pretrain"]


JOB = Path(__file__).parents[2] / "book" / "slurm" / "pretrain.sbatch"
TORCHRUN = """#!/bin/bash
echo "$*" > arguments; mkdir -p runs/slurm-7
[ -e early ] || echo '{"finished": null}' > runs/slurm-7/run.json
if [ -e wait ]; then
  trap 'echo checkpoint >> log; exit 1' TERM
  kill -TERM $PPID; while :; do sleep 0.05; done  # Slurm's signal, two minutes before the end
fi
echo '{"finished": "now"}' > runs/slurm-7/run.json; exit $(cat code)
"""


@pytest.mark.parametrize(
    "interrupted, code, log",
    [
        (["wait"], 0, ["checkpoint", "requeue 7"]),
        (["wait", "early"], 0, ["checkpoint", "requeue 7"]),  # no record yet
        ([], 0, []),
        ([], 3, []),
    ],
)
def test_the_slurm_job_comes_back_when_its_time_is_up(tmp_path, interrupted, code, log):
    scontrol = f'#!/bin/bash\necho "$@" >> {tmp_path}/log\n'
    for name, text in {".venv/bin/python": TORCHRUN, "bin/scontrol": scontrol}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "code").write_text(str(code))
    for name in interrupted:
        (tmp_path / name).touch()
    env = os.environ | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_GPUS_ON_NODE": "4",
    }
    done = subprocess.run(["bash", JOB, "--max-dollars", "3"], env=env, timeout=60)
    assert done.returncode == code
    assert (
        (tmp_path / "log").read_text().splitlines()
        if (tmp_path / "log").exists()
        else []
    ) == log
    arguments = (tmp_path / "arguments").read_text().split()
    assert "--nproc-per-node=4" in arguments and arguments[-3:] == [
        "--resume",
        "--max-dollars",
        "3",
    ]
    options = set(
        CliRunner().invoke(app, ["train", "--help"]).output.replace("│", " ").split()
    )
    assert {
        word for word in arguments[arguments.index("train") :] if word.startswith("--")
    } <= options


@pytest.mark.parametrize("out", [["--out", "x"], ["--out=x"]], ids=len)
def test_the_slurm_job_has_a_folder_of_its_own(tmp_path, out):
    env = os.environ | {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", JOB, "--steps", "9", *out], env=env, capture_output=True, text=True
    )
    assert done.returncode == 2 and "leave --out away" in done.stderr
