"""How an attempt ended whose flow process did not live to hear it: by the word of its supervisor.

The next process of the run asks, on the machine that trained.
"""

import json
from pathlib import Path

from trainjob.catalogue import Rule, Signs, find_rule
from trainjob.launch.rank_files import open_rank_file


def rule_of_dead_flow(records_dir: Path) -> Rule | None:
    """Return the named failure of an attempt that its supervisor ended since nobody was left.

    Args:
        records_dir: What the attempt recorded.

    Returns:
        The rule of the catalogue; None if it ended in another way, or its supervisor died too.
    """
    try:
        with open_rank_file(records_dir / "outcome.json") as opened:
            outcome = json.loads(opened.read())
    except (OSError, ValueError):
        return None
    is_orphaned = isinstance(outcome, dict) and outcome.get("reason") == "orphaned"
    return find_rule(Signs("flow")) if is_orphaned else None
