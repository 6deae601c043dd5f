"""Dropdowns in the forms of jobs for what the platform has: its flavors and its saved stores.

They stand beside the field for a text, which takes a size, or what was made since.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse

from blocks.object_store import ObjectStore, saved_names
from deployments.changes import Change
from flows.registry_place import chosen_registry
from trainjob.flavor_catalogue import flavors_of


def offer_choices(
    client: SyncPrefectClient, deployments: Iterable[DeploymentResponse]
) -> list[Change]:
    """Let the forms of these deployments offer what the platform has now.

    Returns:
        The flavors that are not offered, since there is a mistake in them.

    Raises:
        TrainjobError: If the flavors of the platform cannot be read.
    """
    catalogue = flavors_of(chosen_registry().place)
    flavors = [flavor.name or flavor.size for flavor in catalogue.flavors.values()]
    choices = {
        ("Resources", "flavor"): flavors,
        ("TrainingJob", "store"): saved_names(client, ObjectStore.get_block_type_slug()),
    }
    for deployment in deployments:
        form = deployment.parameter_openapi_schema
        if form is not None and (offering := _with_choices(form, choices)) != form:
            update = DeploymentUpdate(parameter_openapi_schema=offering)
            client.update_deployment(deployment.id, update)
    why = f"no job can name it, correct it in {catalogue.place}"
    return [
        Change("left", f"flavor {name!r}", f"{why}: {problem}")
        for name, problems in catalogue.broken.items()
        for problem in problems
    ]


def _with_choices(
    form: dict[str, Any], choices: Mapping[tuple[str, str], Sequence[str]]
) -> dict[str, Any]:
    """Return the form with a tab for each of the `choices` of a field of a model."""
    offering = copy.deepcopy(form)
    for (model, name), values in choices.items():
        field = offering.get("definitions", {}).get(model, {}).get("properties", {}).get(name)
        if field is not None and values:
            # Behind the text, which is the tab that a form opens for a value that is there.
            field["anyOf"].insert(1, {"title": "Choice", "type": "string", "enum": list(values)})
    return offering
