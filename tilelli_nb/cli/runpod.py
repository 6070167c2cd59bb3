"""`tilelli runpod up | status | fetch | down`: a GPU rented by the hour. A command that
costs or deletes something only says what it would do, until --yes.
"""

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError, RentalError
from ..extras import runpod
from .options import check_range

app = typer.Typer(
    no_args_is_help=True,
    help="Rents a GPU on RunPod. The key comes from RUNPOD_API_KEY alone.",
)
CLOUDS = ("COMMUNITY", "SECURE")
CONSOLE = "console.runpod.io/pods"  # shows what runs, whatever this program says

Gpu = Annotated[str, typer.Option(help="RunPod's name of the card")]
Cloud = Annotated[
    str, typer.Option(help="COMMUNITY is cheaper, SECURE stands in a data centre")
]
Image = Annotated[str, typer.Option(help="Docker image")]
Volume = Annotated[int, typer.Option(help="GB that outlive a stop, at /workspace")]
StopAfter = Annotated[
    float, typer.Option(help="Hours until the pod stops itself; 0: never")
]
Train = Annotated[
    str,
    typer.Option(help='Run this in a clone of the book, then stop, as "make pretrain"'),
]
PodId = Annotated[
    str, typer.Argument(help="The pod's id; `tilelli runpod status` lists them")
]
Folder = Annotated[
    str, typer.Argument(help="In the book's folder, such as runs/lite_10m-x")
]
Terminate = Annotated[
    bool, typer.Option("--terminate", help="Delete it and its volume")
]
Yes = Annotated[
    bool,
    typer.Option("--yes", help="Do it; without, it is only said what would be done"),
]


@app.command()
def up(
    gpu: Gpu = "NVIDIA RTX A6000",
    cloud: Cloud = "COMMUNITY",
    image: Image = runpod.IMAGE,
    volume: Volume = 20,
    stop_after: StopAfter = 12.0,
    train: Train = "",
    yes: Yes = False,
) -> None:
    """Rents a pod with JupyterLab and SSH. The volume stays when it stops; stopping it
    is up to you.
    """
    # a command that cannot work is refused before anything else is asked
    check_range("stop-after", stop_after, 0, 24 * 365)  # -1 would stop it at once
    check_range("volume", volume, 0, 100_000)
    cloud = cloud.upper()
    if cloud not in CLOUDS:
        raise ConfigError(f"--cloud {cloud}", f"use one of {', '.join(CLOUDS)}")
    command = runpod.start_command(stop_after, train)
    price, source = runpod.price_now(gpu, cloud)
    hourly = "unknown" if price is None else f"${price:.2f} an hour"
    running = volume * runpod.USD_PER_GB_MONTH
    stopped = volume * runpod.USD_PER_GB_MONTH_STOPPED
    typer.echo(f"{gpu}, {cloud.lower()} cloud, {image}, {volume} GB at /workspace")
    typer.echo(
        f"price: {hourly} ({source}); volume ${running:.2f} a month, "
        f"${stopped:.2f} while the pod is stopped"
    )
    typer.echo(f"start: {command}")
    # loud, since a forgotten pod is the dearest mistake of all
    if stop_after:
        typer.secho(f"IT STOPS AFTER {stop_after:g} HOURS", bold=True)
    else:
        typer.secho("NOTHING STOPS IT BUT YOU", bold=True)
    if not yes:
        typer.echo("nothing was rented: the same command with --yes rents it")
        return
    pod_id = runpod.rent(gpu, cloud, image, volume, command)
    typer.echo(
        f"rented: {pod_id}. In some minutes JupyterLab is at "
        f"https://{pod_id}-8888.proxy.runpod.net; its password is the pod's variable "
        f"JUPYTER_PASSWORD ({CONSOLE}, or set it here before)"
    )
    typer.echo(
        "next: tilelli runpod status, and when you are done: "
        f"tilelli runpod down {pod_id}"
    )


@app.command()
def status() -> None:
    """Lists your pods: state, card and its use, hours and dollars since the last start,
    and the way in.
    """
    pods = runpod.all_pods()
    for pod in pods:
        typer.echo(described(pod))
        address = runpod.ssh_address(pod)
        if address:
            host, port = address
            typer.echo(f"  ssh root@{host} -p {port}")
    if pods:
        typer.echo("stopped pods still cost their volume")
    else:
        typer.echo("no pods: nothing is billed")


def described(pod: runpod.Pod) -> str:
    """Returns the line of `status` for one pod. What a stopped pod lacks is unknown or
    0.
    """
    runtime = pod["runtime"] or {}  # None while the pod is stopped
    machine = pod["machine"] or {}
    gpus = runtime.get("gpus") or []
    use = ", ".join(f"{gpu['gpuUtilPercent']}%" for gpu in gpus) or "unknown"
    hours = (runtime.get("uptimeInSeconds") or 0) / 3600
    price = pod["costPerHr"] or 0
    return (
        f"{pod['id']} {pod['name']}: {pod['desiredStatus']}, "
        f"{machine.get('gpuDisplayName')}, in use {use}, "
        f"{hours:.1f} hours at ${price:.2f}: ${hours * price:.2f}"
    )


@app.command()
def fetch(pod: PodId, folder: Folder, yes: Yes = False) -> None:
    """Copies a folder from the pod to the same place here; what is here already is not
    sent again.
    """
    parts = Path(folder).parts
    if not parts or Path(folder).is_absolute() or ".." in parts:
        raise ConfigError(
            f"{folder!r} is no folder inside the book's",
            "name one in it, such as runs/pretrain: the copy goes to the same place",
        )
    found = [each for each in runpod.all_pods() if each["id"] == pod]
    if not found:
        raise RentalError(f"pod {pod} does not exist", "see `tilelli runpod status`")
    address = runpod.ssh_address(found[0])
    if address is None:
        raise RentalError(
            f"pod {pod} has no public SSH port",
            "wait a minute if it has just started; "
            "on the pod `runpodctl send FOLDER` works without",
        )
    rsync = shutil.which("rsync") is not None  # else scp, which sends all again
    command = runpod.copy_command(address, folder, rsync)
    typer.echo(shlex.join(command))  # to be read, or copied
    if not yes:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    # a list and no shell: nothing in a folder's name is taken for a command
    if subprocess.run(command).returncode != 0:
        raise RentalError(
            "the copy failed: see above",
            "is your public SSH key in the account's settings?",
        )


@app.command()
def down(pod: PodId, terminate: Terminate = False, yes: Yes = False) -> None:
    """Stops a pod: the GPU is not billed any more, its volume is. With --terminate
    nothing of it is left.
    """
    if terminate:
        warning = f"THIS DELETES POD {pod} AND EVERYTHING ON ITS VOLUME. "
        warning += "Have you fetched your weights?"
    else:
        price = runpod.USD_PER_GB_MONTH_STOPPED
        warning = f"THIS STOPS POD {pod}. Its volume is kept, and costs ${price:.2f} "
        warning += "per GB and month until you --terminate it."
    typer.secho(warning, bold=True)
    # where nobody can answer, the answer is no
    if not yes and not typer.confirm("Go on?"):
        return
    runpod.stop(pod, terminate)
    typer.echo(f"done; {CONSOLE} is the place to make sure that nothing runs")
