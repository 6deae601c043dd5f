"""The queues of every pool, by which runs that wait are started in the order of their priority.

A worker takes the runs of `high` before those of `default`, and these before those of `low`,
whatever waited longer. The queues are made by `deployments.work_queues`; runs are put into them by
`flows.submitting`, or in the form of the UI under "Work Queue".
"""

from collections.abc import Mapping
from typing import Literal, get_args

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)

QUEUES: Mapping[Priority, str] = {"high": "high", "normal": "default", "low": "low"}
"""The queue of each priority, the first to be served first; every pool of Prefect has a default."""
