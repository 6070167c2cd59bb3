"""Renting a GPU on RunPod from the command line: tilelli runpod up | status | fetch |
down. Optional.
"""

import os
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import MissingDependency, RentalError
from ..training.cost import hourly_price

REPOSITORY = "https://github.com/tilelli/tilelli-book"


# official; its PyTorch is the one of requirements.txt
IMAGE = "runpod/pytorch:1.3.2-cu1281-torch2130-ubuntu2404"


# what a host's driver may offer; an image needs its own or newer
CUDA = ("12.8", "12.9", "13.0", "13.1", "13.2")


# older and newer word order
STOP = "(runpodctl stop pod $RUNPOD_POD_ID || runpodctl pod stop $RUNPOD_POD_ID)"


PODS = """query { myself { pods { id name desiredStatus costPerHr volumeInGb machine { gpuDisplayName } runtime {
uptimeInSeconds gpus { gpuUtilPercent } ports { ip isIpPublic privatePort publicPort } } } } }"""


pods = typer.Typer(
    no_args_is_help=True,
    help="Rents a GPU on RunPod. The key comes from RUNPOD_API_KEY alone.",
)


Pod = Annotated[
    str, typer.Argument(help="The pod's id; `tilelli runpod status` lists them")
]


Yes = Annotated[
    bool,
    typer.Option("--yes", help="Do it; without, it is only said what would be done"),
]


@pods.command()
def up(
    gpu: Annotated[
        str, typer.Option(help="RunPod's name of the card")
    ] = "NVIDIA RTX A6000",
    cloud: Annotated[
        str, typer.Option(help="COMMUNITY is cheaper, SECURE stands in a data centre")
    ] = "COMMUNITY",
    image: Annotated[str, typer.Option(help="Docker image")] = IMAGE,
    volume: Annotated[
        int, typer.Option(help="GB that outlive a stop, at /workspace")
    ] = 20,
    stop_after: Annotated[
        float, typer.Option(help="Hours until the pod stops itself; 0: never")
    ] = 12.0,
    train: Annotated[
        str,
        typer.Option(
            help='Run this in a clone of the book, then stop, as "make pretrain"'
        ),
    ] = "",
    yes: Yes = False,
) -> None:
    """Rents a pod with JupyterLab and SSH. The volume stays when it stops; stopping it
    is up to you.
    """
    command = start_command(stop_after, train)
    price, source = price_now(gpu, cloud)
    typer.echo(f"{gpu}, {cloud.lower()} cloud, {image}, {volume} GB at /workspace")
    typer.echo(
        f"price: {'unknown' if price is None else f'${price:.2f} an hour'} ({source}); volume "
        f"${volume / 10:.2f} a month, ${volume / 5:.2f} while the pod is stopped"
    )
    typer.echo(f"start: {command}")
    typer.secho(
        f"IT STOPS AFTER {stop_after:g} HOURS"
        if stop_after
        else "NOTHING STOPS IT BUT YOU",
        bold=True,
    )
    if not yes:
        typer.echo("nothing was rented: the same command with --yes rents it")
        return
    # "runpod/pytorch:1.3.2-cu1281-..." needs CUDA 12.8
    needed = tuple(image.partition("-cu")[2][:3])
    cuda = [version for version in CUDA if tuple(version.replace(".", "")) >= needed]
    pod = ask(
        "create_pod",
        name="tilelli",
        image_name=image,
        gpu_type_id=gpu,
        cloud_type=cloud,
        volume_in_gb=volume,
        container_disk_in_gb=20,
        min_vcpu_count=4,
        min_memory_in_gb=16,
        docker_args=command,
        ports="8888/http,22/tcp",
        volume_mount_path="/workspace",
        allowed_cuda_versions=cuda or None,
        env={
            "JUPYTER_PASSWORD": os.environ.get("JUPYTER_PASSWORD")
            or secrets.token_urlsafe(16)
        },
    )
    typer.echo(
        f"rented: {pod['id']}. In some minutes JupyterLab is at https://{pod['id']}-8888.proxy.runpod.net; its "
        "password is the pod's variable JUPYTER_PASSWORD (console.runpod.io/pods, or set it here before)"
    )
    typer.echo(
        f"next: tilelli runpod status, and when you are done: tilelli runpod down {pod['id']}"
    )


@pods.command()
def status() -> None:
    """Lists your pods: state, card and its use, hours and dollars since the last start,
    and the way in.
    """
    found = all_pods()
    for pod in found:
        run, card = pod["runtime"] or {}, (pod["machine"] or {}).get("gpuDisplayName")
        hours, usd_per_hour = (
            (run.get("uptimeInSeconds") or 0) / 3600,
            pod["costPerHr"] or 0,
        )
        use = (
            ", ".join(f"{gpu['gpuUtilPercent']}%" for gpu in run.get("gpus") or [])
            or "unknown"
        )
        typer.echo(
            f"{pod['id']} {pod['name']}: {pod['desiredStatus']}, {card}, in use {use}, {hours:.1f} hours at "
            f"${usd_per_hour:.2f}: ${hours * usd_per_hour:.2f}"
        )
        if address := ssh_address(pod):
            typer.echo(f"  ssh root@{address[0]} -p {address[1]}")
    typer.echo(
        "no pods: nothing is billed"
        if not found
        else "stopped pods still cost their volume"
    )


@pods.command()
def fetch(
    pod: Pod,
    folder: Annotated[
        str, typer.Argument(help="In the book's folder, such as runs/lite_10m-x")
    ],
    yes: Yes = False,
) -> None:
    """Copies a folder from the pod to the same place here; what is here already is not
    sent again.
    """
    found = next((each for each in all_pods() if each["id"] == pod), None)
    if not (address := found and ssh_address(found)):
        raise RentalError(
            f"pod {pod} {'has no public SSH port' if found else 'does not exist'}",
            "wait a minute if it has just started; on the pod `runpodctl send FOLDER` works without",
        )
    place = f"root@{address[0]}:/workspace/{REPOSITORY.rpartition('/')[2]}/{folder.strip('/')}"
    command = [
        "rsync",
        "-avz",
        "-e",
        f"ssh -p {address[1]}",
        place + "/",
        folder.rstrip("/") + "/",
    ]
    if not shutil.which("rsync"):
        command = ["scp", "-r", "-P", str(address[1]), place + "/.", folder]
    typer.echo(shlex.join(command))
    if not yes:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    if subprocess.run(command).returncode:
        raise RentalError(
            "the copy failed: see above",
            "is your public SSH key in the account's settings?",
        )


@pods.command()
def down(
    pod: Pod,
    terminate: Annotated[
        bool, typer.Option("--terminate", help="Delete it and its volume")
    ] = False,
    yes: Yes = False,
) -> None:
    """Stops a pod: the GPU is not billed any more, its volume is. With --terminate
    nothing of it is left.
    """
    typer.secho(
        f"THIS {'DELETES' if terminate else 'STOPS'} POD {pod}"
        + (
            " AND EVERYTHING ON ITS VOLUME. Have you fetched your weights?"
            if terminate
            else ". Its volume is kept, and costs $0.20 per GB and month until you --terminate it."
        ),
        bold=True,
    )
    if not (yes or typer.confirm("Go on?")):
        return
    ask("terminate_pod" if terminate else "stop_pod", pod)
    typer.echo(
        "done; console.runpod.io/pods is the place to make sure that nothing runs"
    )


def start_command(stop_after: float, train: str) -> str:
    """What the container runs: a timer, the training if there is any, and the image's
    own start of SSH and JupyterLab.

    Started again after a stop, a training that had not ended goes on; one that had
    leaves the pod to you. The API puts the command between double quotes as it is:
    RentalError for a `train` with quotes, backslashes or line ends.
    """
    if set(train) & set("\"'\\\n"):
        raise RentalError(
            "--train must not hold quotes, backslashes or line ends",
            "put them into a script",
        )
    book = REPOSITORY.rpartition("/")[2]
    parts = [f"(sleep {round(stop_after * 3600)}; {STOP}) &"] * bool(stop_after)
    parts += [
        f"(cd /workspace; [ -e ended ] || (([ -d {book} ] || git clone {REPOSITORY}) && cd {book} && make pod && "
        f"{train}; touch /workspace/ended; {STOP})) >> /workspace/train.log 2>&1 &"
    ] * bool(train)
    return f"bash -c '{' '.join([*parts, 'exec /start.sh'])}'"


def price_now(gpu: str, cloud: str) -> tuple[float | None, str]:
    """Dollars an hour, and who says so: RunPod when there is a key, else the book's
    table.
    """
    if not os.environ.get("RUNPOD_API_KEY"):
        return hourly_price(
            gpu
        ), "the book's table; RunPod itself is asked once RUNPOD_API_KEY is set"
    found = ask("get_gpu", gpu)
    return found[
        "communityPrice" if cloud == "COMMUNITY" else "securePrice"
    ], "RunPod, now"


def all_pods() -> list[dict[str, Any]]:
    """Your pods as the API describes them."""
    return ask("run_graphql_query", PODS)["data"]["myself"]["pods"]


def ssh_address(pod: dict[str, Any]) -> tuple[str, int] | None:
    """Public IP and port of a running pod's SSH server."""
    ports = (pod["runtime"] or {}).get("ports") or []
    return next(
        (
            (p["ip"], p["publicPort"])
            for p in ports
            if p["privatePort"] == 22 and p["isIpPublic"]
        ),
        None,
    )


def ask(function: str, *args: Any, **options: Any) -> Any:
    """Calls a function of RunPod's own package with the key of the environment, which
    no message shows.
    """
    if not (key := os.environ.get("RUNPOD_API_KEY")):
        raise RentalError(
            "RUNPOD_API_KEY is not set",
            "make a key at console.runpod.io/user/settings and export it; "
            "never write it into a notebook",
        )
    try:
        import runpod
        from runpod.api.graphql import run_graphql_query
    except ImportError as error:
        raise MissingDependency(
            "renting uses RunPod's own package", 'pip install "tilelli-nb[runpod]"'
        ) from error
    runpod.api_key = key
    call: Callable[..., Any] = (
        run_graphql_query
        if function == "run_graphql_query"
        else getattr(runpod, function)
    )
    try:
        return call(*args, **options)
    # the network, the API's answers, an unknown card: each has its own kind
    except Exception as error:
        raise RentalError(
            f"RunPod: {str(error).replace(key, '...')}",
            "look at console.runpod.io/pods",
        ) from None
