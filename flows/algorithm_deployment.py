"""A deployment made from a saved algorithm: its form has the algorithm's own hyperparameters.

The form of `training-job` takes whatever hyperparameters; this one has a field for each that the
algorithm names, with its type, range and choices. The parameter is the same `job`, so the flow, the
terminal and programs know no difference.
"""

import copy
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.responses import DeploymentResponse

from flows.schedules import MADE_FROM_ALGORITHM, inherited_tags, kept_limit, same_start
from flows.submitting import find_deployment
from trainjob.errors import TrainjobError
from trainjob.hyperparameter_rules import HyperparameterRule
from trainjob.job import Environment, InputChannel, Logs
from trainjob.launch.launch import Device
from trainjob.limits import Limits
from trainjob.registry.records import SavedAlgorithm

_TYPES = {"string": "string", "integer": "integer", "float": "number", "boolean": "boolean"}


def deploy_algorithm(
    client: SyncPrefectClient, algorithm: SavedAlgorithm, base: DeploymentResponse, name: str
) -> None:
    """Make a deployment of an algorithm; one of the same name that was made here is replaced.

    What a person has added to that one stays: its schedules, its limit of runs, a pause.

    Args:
        client: How to reach the server.
        algorithm: The version.
        base: The deployment that says how runs are started, and by the workers of which pool; its
            job, without what belongs to another algorithm, fills the form.
        name: Name of the deployment.

    Raises:
        TrainjobError: If a deployment has the name that was not made here.
    """
    known = find_deployment(client, name)
    if known is not None and MADE_FROM_ALGORITHM not in known.tags:
        raise TrainjobError(
            f"asked for a deployment of the name {name!r}, found one that this command has not "
            "made; give another --name"
        )
    job = default_job(algorithm, base.parameters.get("job") or {})
    start = same_start(base)
    start["parameter_openapi_schema"] = form_of(
        algorithm, base.parameter_openapi_schema or {}, job["resources"]["device"]
    )
    client.create_deployment(
        flow_id=base.flow_id,
        name=name,
        description=f"Train with the saved algorithm {algorithm}. {algorithm.description}".strip(),
        parameters={"job": job},
        tags=sorted({*inherited_tags(base), MADE_FROM_ALGORITHM}),
        schedules=_schedules_of(known) if known else None,
        **kept_limit(known),
        **start,
    )


def form_of(algorithm: SavedAlgorithm, schema: dict[str, Any], device: Device) -> dict[str, Any]:
    """Return the schema of `training-job`'s parameters, narrowed to one algorithm.

    Args:
        algorithm: The version.
        schema: That of the parameters.
        device: The device that the form begins with.
    """
    narrowed = copy.deepcopy(schema)
    fields = narrowed["definitions"]["TrainingJob"]["properties"]
    fields["algorithm"] = {
        "title": "Algorithm",
        "description": "The saved algorithm of this deployment.",
        "type": "string",
        "enum": [str(algorithm)],
        "default": str(algorithm),
    }
    definition = algorithm.definition
    rules = definition.hyperparameters
    allows_custom = definition.allow_custom_hyperparameters
    if rules:
        fields["hyperparameters"] = {
            "title": "Hyperparameters",
            "description": f"Those of {algorithm}.",
            "type": "object",
            "properties": {rule.name: _field(rule, i) for i, rule in enumerate(rules)},
            "required": [rule.name for rule in rules if rule.required and rule.default is None],
            "additionalProperties": bool(allows_custom),
        }
    constraints = definition.constraints
    resources = narrowed["definitions"]["Resources"]["properties"]
    resources["device"] |= {"enum": list(constraints.devices), "default": device}
    if not constraints.multi_card:
        resources["processes_per_node"]["maximum"] = 1
    return narrowed


def device_of(algorithm: SavedAlgorithm, preferred: Device = "cpu") -> Device:
    """Return the device that the form of an algorithm begins with.

    Args:
        algorithm: The version.
        preferred: The one to begin with if the algorithm can use it; then comes cpu.
    """
    devices = algorithm.definition.constraints.devices
    return next((device for device in (preferred, "cpu") if device in devices), devices[0])


def default_job(algorithm: SavedAlgorithm, base: dict[str, Any]) -> dict[str, Any]:
    """Return the job that fills the form: complete, since a partial one breaks it (3.8.8).

    Of the base it has what is not of its own script: the profile, the store, the sandbox, the
    device, for how long it may show no sign of life, and where results and logs go. Which data it
    trains on, a person has to say.
    """
    rules = algorithm.definition.hyperparameters
    resources = copy.deepcopy(base.get("resources") or {})
    return {
        **copy.deepcopy(base),
        "name": algorithm.name,
        "description": algorithm.description,
        "tags": [],
        "algorithm": str(algorithm),
        "hyperparameters": {rule.name: rule.default for rule in rules if rule.default is not None},
        "inputs": _inputs(algorithm, base),
        "outputs": _outputs(algorithm, base),
        "checkpoints": None,
        "env": {},
        "secrets": {},
        "environment": Environment().model_dump(mode="json"),
        # What any script can be started with; those of the base are for its own.
        "resources": {
            **resources,
            "device": device_of(algorithm, resources.get("device", "cpu")),
            "flavor": None,
            "processes_per_node": 1,
        },
        "launcher": "single",
        # Nobody else ends a run that hangs, and it keeps its card.
        "limits": Limits().model_dump(mode="json")
        | {"stall": (base.get("limits") or {}).get("stall")},
        "metrics": [],
        "logs": _logs(algorithm, base),
    }


def _field(rule: HyperparameterRule, position: int) -> dict[str, Any]:
    """Return the schema of one hyperparameter."""
    value: dict[str, Any] = {"type": _TYPES[rule.type]}
    if rule.minimum is not None:
        value["minimum"] = rule.minimum
    if rule.maximum is not None:
        value["maximum"] = rule.maximum
    if rule.choices:
        value["enum"] = list(rule.choices)
    if rule.restricted:
        value["enum"] = rule.default if rule.is_list else [rule.default]
    field = {"type": "array", "items": value} if rule.is_list else value
    # The form shows no range of its own, and the choices only of an open dropdown.
    description = "; ".join(filter(None, (rule.description, rule.allowed())))
    about = {"title": rule.name, "description": description, "position": position}
    return field | about | ({} if rule.default is None else {"default": rule.default})


def _inputs(algorithm: SavedAlgorithm, base: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the inputs that the algorithm needs, or else those of the base, without their data."""
    declared = algorithm.inputs
    if declared is None:
        names = [channel["name"] for channel in base.get("inputs") or ()]
    else:
        names = [channel.name for channel in declared if channel.required]
    # A url that is missing is told when the run starts; that of the base is of other data.
    empty = InputChannel(name="data_url", url=".").model_dump(mode="json")
    return [empty | {"name": name, "url": ""} for name in names]


def _outputs(algorithm: SavedAlgorithm, base: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the outputs of the algorithm, where those of the base go, but under its own name."""
    of_base: list[dict[str, Any]] = base.get("outputs") or []
    if algorithm.outputs is None:
        outputs = copy.deepcopy(of_base)
    else:
        pattern = next(iter(of_base), {})
        outputs = [pattern | {"name": output.name} for output in algorithm.outputs]
    for output in outputs:
        if output.get("url"):
            output["url"] = _place(output["url"], algorithm, base)
            if len(outputs) > 1 and algorithm.outputs is not None:  # they cannot share a place
                output["url"] = f"{output['url'].rstrip('/')}/{output['name']}/"
    return outputs


def _logs(algorithm: SavedAlgorithm, base: dict[str, Any]) -> dict[str, Any]:
    """Return where the output of the ranks goes: to a store if that of the base does."""
    url = (base.get("logs") or {}).get("url")
    own = Logs(url=_place(url, algorithm, base)) if url else Logs()
    return own.model_dump(mode="json")


def _place(url: str, algorithm: SavedAlgorithm, base: dict[str, Any]) -> str:
    """Return a place of the base's job with the name of the algorithm for that of the job."""
    return "/".join(algorithm.name if p == base.get("name") else p for p in url.split("/"))


def _schedules_of(known: DeploymentResponse) -> list[DeploymentScheduleCreate]:
    """Return the schedules of a deployment for an upsert, which deletes those it does not name."""
    return [
        DeploymentScheduleCreate(
            schedule=kept.schedule,
            active=kept.active,
            max_scheduled_runs=kept.max_scheduled_runs,
            parameters=kept.parameters,
            slug=kept.slug,
        )
        for kept in known.schedules
    ]
