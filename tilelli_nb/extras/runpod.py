"""A GPU rented on RunPod: what a pod is asked for, what it runs when it starts, and how
its API is called. `tilelli runpod` says and does it; no chapter needs it.
"""

import os
import secrets
from typing import Any

from .. import address as the_book
from ..errors import MissingDependency, RentalError
from ..training.cost import hourly_price

WORKSPACE = "/workspace"  # the volume, which outlives a stop

# official; its PyTorch is the one of requirements.txt
IMAGE = "runpod/pytorch:1.3.2-cu1281-torch2130-ubuntu2404"
# what a host's driver may offer; an image needs its own or newer
CUDA = ("12.8", "12.9", "13.0", "13.1", "13.2")
# a pod stops itself with this program; older and newer versions order the words
# differently
STOP = "(runpodctl stop pod $RUNPOD_POD_ID || runpodctl pod stop $RUNPOD_POD_ID)"

SSH_PORT = 22
USD_PER_GB_MONTH = 0.10  # of the volume of a pod that runs
USD_PER_GB_MONTH_STOPPED = 0.20

PODS_QUERY = """
query { myself { pods {
  id name desiredStatus costPerHr volumeInGb
  machine { gpuDisplayName }
  runtime {
    uptimeInSeconds
    gpus { gpuUtilPercent }
    ports { ip isIpPublic privatePort publicPort }
  }
} } }"""

Pod = dict[str, Any]  # as the API describes it


def start_command(stop_after: float, train: str) -> str:
    """Returns what the container runs: a timer of `stop_after` hours (0: none), the
    training if there is any, and the image's own start of SSH and JupyterLab.

    Started again after a stop, a training that had not ended goes on; one that had
    leaves the pod to you. The API puts the command between double quotes as it is:
    RentalError for a `train` with quotes, backslashes or line ends.
    """
    if set(train) & set("\"'\\\n"):
        raise RentalError(
            "--train must not hold quotes, backslashes or line ends",
            "put them into a script",
        )
    # each part runs beside the others; the last one never ends
    parts = []
    if stop_after:
        parts.append(f"(sleep {round(stop_after * 3600)}; {STOP}) &")
    if train:
        if not the_book.REPOSITORY:
            raise RentalError(
                "a pod cannot fetch the book: its address is not set",
                "make address URL=https://... names a repository that you trust; or "
                "leave --train out, and copy the book there yourself",
            )
        folder = the_book.FOLDER
        # a pod that was stopped has its clone still
        clone = f"([ -d {folder} ] || git clone {the_book.REPOSITORY} {folder})"
        # stops also when the set-up fails: a pod that does nothing is billed, too
        job = f"({clone} && cd {folder} && make pod && {train}; "
        job += f"touch {WORKSPACE}/ended; {STOP})"
        once = f"(cd {WORKSPACE}; [ -e ended ] || {job})"
        parts.append(f"{once} >> {WORKSPACE}/train.log 2>&1 &")
    parts.append("exec /start.sh")
    return f"bash -c '{' '.join(parts)}'"


def price_now(gpu: str, cloud: str) -> tuple[float | None, str]:
    """Returns dollars an hour (None: unknown) and who says so: RunPod when there is a
    key, else TILELLI_USD_PER_HOUR or the book's table.
    """
    if not os.environ.get("RUNPOD_API_KEY"):
        source = "the book's table"
        if os.environ.get("TILELLI_USD_PER_HOUR"):
            source = "TILELLI_USD_PER_HOUR"
        source += "; RunPod itself is asked once RUNPOD_API_KEY is set"
        return hourly_price(gpu), source
    found = ask("get_gpu", gpu)
    # the price of this minute; the table's is as old as the book
    key = "communityPrice" if cloud == "COMMUNITY" else "securePrice"
    return found[key], "RunPod, now"


def rent(gpu: str, cloud: str, image: str, volume_gb: int, command: str) -> str:
    """Rents a pod that runs `command`, and returns its id. From now on it is billed.

    JupyterLab's password is JUPYTER_PASSWORD of this machine, else a random one.
    """
    password = os.environ.get("JUPYTER_PASSWORD") or secrets.token_urlsafe(16)
    pod = ask(
        "create_pod",
        name="tilelli",
        image_name=image,
        gpu_type_id=gpu,
        cloud_type=cloud,
        volume_in_gb=volume_gb,
        container_disk_in_gb=20,
        min_vcpu_count=4,
        min_memory_in_gb=16,
        docker_args=command,
        ports=f"8888/http,{SSH_PORT}/tcp",
        volume_mount_path=WORKSPACE,
        allowed_cuda_versions=cuda_versions(image),
        env={"JUPYTER_PASSWORD": password},
    )
    return pod["id"]


def cuda_versions(image: str) -> list[str] | None:
    """Returns the versions of CUDA that a host may have for this image, None where any
    will do.

    The image's name says its own: "runpod/pytorch:1.3.2-cu1281-..." needs 12.8.
    """
    needed = image.partition("-cu")[2][:3]  # "128", or "" where the name is silent
    fitting = []
    for version in CUDA:
        if version.replace(".", "") >= needed:
            fitting.append(version)
    return fitting or None


def all_pods() -> list[Pod]:
    """Returns your pods."""
    return ask("run_graphql_query", PODS_QUERY)["data"]["myself"]["pods"]


def ssh_address(pod: Pod) -> tuple[str, int] | None:
    """Returns public IP and port of a running pod's SSH server, None without one."""
    runtime = pod["runtime"] or {}
    for port in runtime.get("ports") or []:
        if port["privatePort"] == SSH_PORT and port["isIpPublic"]:
            return port["ip"], port["publicPort"]
    return None


def copy_command(address: tuple[str, int], folder: str, rsync: bool) -> list[str]:
    """Returns the command that copies a folder of the book from a pod to the same place
    here: rsync, which sends nothing twice, or scp.
    """
    host, port = address
    here = folder.rstrip("/")
    there = f"root@{host}:{WORKSPACE}/{the_book.FOLDER}/{folder.strip('/')}"
    if rsync:
        return ["rsync", "-avz", "-e", f"ssh -p {port}", f"{there}/", f"{here}/"]
    return ["scp", "-r", "-P", str(port), f"{there}/.", folder]


def stop(pod_id: str, terminate: bool) -> None:
    """Stops a pod, or deletes it and its volume."""
    ask("terminate_pod" if terminate else "stop_pod", pod_id)


def ask(function: str, *args: Any, **options: Any) -> Any:
    """Calls a function of RunPod's own package with the key of the environment, which
    no message shows. Raises MissingDependency, RentalError.
    """
    key = os.environ.get("RUNPOD_API_KEY")
    if not key:
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
    runpod.api_key = key  # the package reads no variable itself
    # for what the package has no function of its own
    if function == "run_graphql_query":
        call = run_graphql_query
    else:
        call = getattr(runpod, function)
    try:
        return call(*args, **options)
    # the network, the API's answers, an unknown card: each has its own kind
    except Exception as error:
        raise RentalError(
            f"RunPod: {str(error).replace(key, '...')}",
            "look at console.runpod.io/pods",
        ) from None
