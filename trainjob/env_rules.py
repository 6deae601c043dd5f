"""The rules of the variables that a job gives its ranks; called by `trainjob.job_rules`.

Whether a value in `env` is a secret is no rule of the model, but asked of what a person is about to
send (`trainjob.job`), and of what was sent for a warning (`trainjob.check`): a job that runs must
not fail of how a variable is called.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trainjob.errors import Level, Problem
from trainjob.launch.environment import is_of_machine
from trainjob.launch.numa import SWITCH

if TYPE_CHECKING:  # the model calls these rules, so it cannot be imported here
    from trainjob.job import TrainingJob

RESERVED_ENV = re.compile(
    r"(?:RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|MASTER_ADDR|MASTER_PORT)"
    r"|TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    rf"|(?!{SWITCH}$)(?:TORCHELASTIC|TRAINJOB|PMI|OMPI|PREFECT)_.*"
)
"""Environment names that the launchers and trainjob set; a job must not."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OF_SECRET = re.compile(
    r"(?:.*_)?(?:PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|(?:SECRET_?)?ACCESS_?KEY|SECRET_?KEY)",
    re.IGNORECASE,
)
_OF_TOKENIZER = re.compile(
    r"(?:.*_)?(?:BOS|EOS|SOS|PAD|UNK|MASK|CLS|SEP|START|END|STOP)_TOKEN", re.IGNORECASE
)
_IN_BRACKETS = re.compile(r"<.*>")  # <|endoftext|>, or what stands for a value: <your key>
_LOGIN_IN_URL = re.compile(r"://[^/\s@]*:[^/\s@]+@")

MIN_SECRET_CHARS = 8
"""A shorter value is a switch: to hide it would change numbers and words of every log."""


def variables_of(job: "TrainingJob") -> Iterator[tuple[str, str]]:
    """Yield the field and the name of every variable that a job gives by its name."""
    yield from ((f"env.{name}", name) for name in job.env)
    yield from ((f"secrets.{name}", name) for name in job.secrets)


def env_problems(job: "TrainingJob") -> list[Problem]:
    """Return what `env` and `secrets` of a job may not hold."""
    problems = []
    for field, name in variables_of(job):
        if not _NAME.fullmatch(name):
            do = "use letters, digits and _, not starting with a digit"
            problems.append(Problem(field, "an environment name", repr(name), do))
        elif RESERVED_ENV.fullmatch(name):
            found = "a name that the launcher sets for every rank"
            problems.append(Problem(field, repr(name), found, "remove it"))
    for name in sorted(job.secrets.keys() & job.env.keys()):
        found = f"env.{name}, which gives it too"
        problems.append(Problem(f"secrets.{name}", repr(name), found, "remove one of them"))
    for name in job.secrets:
        # NVIDIA_API_KEY begins like a setting and is none.
        if is_of_machine(name) and not _OF_SECRET.fullmatch(name):
            found, do = "a setting of the machine", f"give it as env: {{{name}: VALUE}}"
            problems.append(Problem(f"secrets.{name}", repr(name), found, do))
    return problems


def open_secret_problems(env: Any, level: Level = "error") -> list[Problem]:
    """Return what in `env` is a secret by its name or form: parameters are read by everyone.

    Args:
        env: Variables with their values as a job has them; anything else has none.
        level: Whether the job is refused for it.
    """
    if not isinstance(env, Mapping):
        return []
    problems = []
    for name, value in env.items():
        found = _open_secret(str(name), str(value))
        if found:
            do = (
                f"save the value as a block of the type Secret, and give the name of the block: "
                f"secrets: {{{name}: NAME}}"
            )
            asked = "a value that everyone who sees the run may read"
            problems.append(Problem(f"env.{name}", asked, found, do, id="env-secret", level=level))
    return problems


def _open_secret(name: str, value: str) -> str | None:
    """Return what makes a value a secret; None if it is none."""
    if _LOGIN_IN_URL.search(value):
        return "a url with a password"
    is_switch = len(value) < MIN_SECRET_CHARS  # HF_HUB_DISABLE_IMPLICIT_TOKEN=1
    is_word = _OF_TOKENIZER.fullmatch(name) or _IN_BRACKETS.fullmatch(value)
    if is_switch or is_word or not _OF_SECRET.fullmatch(name):
        return None
    return "the name of a secret"
