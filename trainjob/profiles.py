"""Dialects: what scripts and jobs of other products rely on, one record a product.

Data only. `trainjob.profile_rules` finds what breaks a product's rules, `trainjob.plan` gives the
ranks its folders, arguments and environment. The folders are absolute and real for the script:
see `trainjob.launch.mounts`.

Sources: OpenI, "Training tasks" (name, description, /code, /dataset, /model, data_url, ckpt_url,
train_url, /cache/output); ModelArts, "Developing a custom script" and "Viewing environment
variables of a training container" (/home/ma-user/modelarts, MA_*, VC_*); TI-ONE, "Overview of
Task-based Modeling" (mapping path). Where a product does not say a folder, the comment does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trainjob.code_limits import MODELARTS_LIMITS, OWN_LIMITS, CodeLimits

ProfileName = Literal["plain", "openi-gpu", "openi-npu", "modelarts", "tione"]

GivenAs = Literal["argument", "env", "both"]
"""ModelArts, creating a training job: a channel is obtained from hyperparameters, which are
arguments, or from environment variables."""

ANY = "*"
"""Stands for every name of a channel that has no place of its own."""


@dataclass(frozen=True, slots=True)
class Place:
    """How the script gets the folder of a channel.

    Attributes:
        path: Its absolute folder, where {name} is the channel's name and {index} its number among
            the inputs or outputs, from 0; None: a folder of the run's workspace.
        given_as: How it is given where the job does not say it. A variable of the environment hurts
            no script, so that it is always among these.
    """

    path: str | None = None
    given_as: GivenAs = "both"


@dataclass(frozen=True, slots=True)
class Profile:
    """What one product promises to scripts, and demands of jobs.

    Attributes:
        name_rule: What a job's name matches as a whole.
        name_words: The same in words.
        max_description: The most characters of a description.
        devices: What a job of the product may compute on; cpu, to try it without the device.
        code_limits: How much code a job may have.
        code: The absolute folder of the code, where {code} is the last part of its url; None: a
            folder of the workspace.
        scratch: An absolute folder that the script may fill; it is not uploaded.
        inputs: By channel name, or `ANY`, where the script finds it.
        outputs: The same.
        value_rule: What a text among the values of hyperparameters matches as a whole; None: any.
        environment: Variables of every rank, where {nodes} is the number of machines and
            {devices} that of devices on each.
    """

    name_rule: str = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}"
    name_words: str = "1 to 64 letters, digits, - and _, not starting with -"
    max_description: int = 1024
    devices: tuple[str, ...] = ("cpu", "cuda", "npu")
    code_limits: CodeLimits = OWN_LIMITS
    code: str | None = None
    scratch: str | None = None
    inputs: Mapping[str, Place] = field(default_factory=lambda: {ANY: Place()})
    outputs: Mapping[str, Place] = field(default_factory=lambda: {ANY: Place()})
    value_rule: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


_OPENI_NAME = r"[a-z0-9](?:[a-z0-9_-]{0,34}[a-z0-9-])?"
_OPENI_NAME_WORDS = (
    "1 to 36 lower-case letters, digits, _ and -, starting with a letter or digit, not ending in _"
)
_MODELARTS_HOME = "/home/ma-user/modelarts"
_MODELARTS_CODE = f"{_MODELARTS_HOME}/user-job-dir/{{code}}"
_MODELARTS_INPUT = f"{_MODELARTS_HOME}/inputs/{{name}}_{{index}}"
_MODELARTS_ENVIRONMENT = {
    "MA_HOME": "/home/ma-user",
    "MA_MOUNT_PATH": _MODELARTS_HOME,
    "MA_JOB_DIR": f"{_MODELARTS_HOME}/user-job-dir",
    "MA_NUM_HOSTS": "{nodes}",
    "MA_NUM_GPUS": "{devices}",  # the number of NPUs on a machine with those
    "MA_TASK_NAME": "worker",
    "VC_TASK_INDEX": "0",
    "VC_WORKER_NUM": "{nodes}",
    "VC_WORKER_HOSTS": "127.0.0.1",
}

PROFILES: Mapping[ProfileName, Profile] = {
    "plain": Profile(),
    "openi-gpu": Profile(
        name_rule=_OPENI_NAME,
        name_words=_OPENI_NAME_WORDS,
        max_description=255,
        devices=("cpu", "cuda"),
        code="/code",
        inputs={
            # Its scripts know the folder, and may refuse an argument that they do not declare.
            "dataset": Place("/dataset", given_as="env"),
            "ckpt_url": Place("/pretrainmodel"),  # only the argument is promised
        },
        outputs={"model": Place("/model", given_as="env")},
    ),
    "openi-npu": Profile(
        name_rule=_OPENI_NAME,
        name_words=_OPENI_NAME_WORDS,
        max_description=255,
        devices=("cpu", "npu"),
        code_limits=MODELARTS_LIMITS,  # its NPU form runs on ModelArts
        code=_MODELARTS_CODE,
        scratch="/cache",
        inputs={"data_url": Place(_MODELARTS_INPUT), "ckpt_url": Place(_MODELARTS_INPUT)},
        # The document names both, so they are one folder.
        outputs={"train_url": Place("/cache/output")},
        environment=_MODELARTS_ENVIRONMENT,
    ),
    "modelarts": Profile(
        max_description=256,
        # ModelArts, creating an algorithm: what may be typed into the fields of a hyperparameter.
        value_rule=r"[\w ,.-]*",
        code_limits=MODELARTS_LIMITS,
        code=_MODELARTS_CODE,
        scratch="/cache",
        inputs={ANY: Place(_MODELARTS_INPUT)},
        outputs={ANY: Place(f"{_MODELARTS_HOME}/outputs/{{name}}_{{index}}")},
        environment=_MODELARTS_ENVIRONMENT,
    ),
    "tione": Profile(
        name_rule=r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}",
        name_words="1 to 60 letters, digits, - and _, starting with a letter or digit",
        devices=("cpu", "cuda"),
        # The walkthrough has mapping paths, not what they are below: the folders are our choice.
        # No arguments, since there the startup command is run as it was typed.
        code="/opt/ml/code",
        inputs={ANY: Place("/opt/ml/input/data/{name}", given_as="env")},
        outputs={ANY: Place("/opt/ml/output", given_as="env")},
    ),
}


def place_of(places: Mapping[str, Place], name: str) -> Place | None:
    """Return how a channel is given; None if the product has no channel of that name."""
    return places.get(name, places.get(ANY))


def way_of(places: Mapping[str, Place], name: str, given_as: GivenAs | None) -> GivenAs:
    """Return how a channel is given: as the job says, else as the product does it."""
    place = place_of(places, name)
    return given_as or (place.given_as if place else "both")
