"""Where saved versions are kept: a folder, or the blocks of Prefect's server."""

import os

from trainjob.registry.folder import registry_of_machine
from trainjob.registry.registry import Registry


def chosen_registry() -> Registry:
    """Return the registry that ``TRAINJOB_REGISTRY`` chooses: ``prefect``, or a folder.

    Raises:
        TrainjobError: If a server is configured and does not answer.
    """
    if os.environ.get("TRAINJOB_REGISTRY") != "prefect":
        return registry_of_machine()
    # A folder needs no server, nor the time that the import of Prefect takes.
    from blocks.saved_versions import BlockPlace
    from flows.server import reach_server

    reach_server()
    return Registry(BlockPlace())
