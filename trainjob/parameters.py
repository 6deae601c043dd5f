"""Channels and hyperparameters as a program reads them: argv, environment and params.json.

Pure functions, used by the job model (for the rules), by the check before a run (to show the
command line) and by the run. The same values reach the program three times:

- argv, made so that an unchanged argparse script reads value and type back: ``--name value`` in
  two words, true and false in small letters, a list as ``--name a b c`` for ``nargs="*"`` (an
  empty list is ``--name`` alone), and a single value that starts with - as ``--name=value``,
  because argparse takes ``--lr -1e-05`` for two options; an `ArgumentStyle` for scripts that
  read them otherwise;
- environment: a channel as its name in capitals, a hyperparameter as ``TRAINJOB_HP_`` and its name
  in capitals with _ for -, lists as JSON, and ``TRAINJOB_PARAMS`` as the path of params.json;
- params.json: ``{"channels": {NAME: PATH}, "hyperparameters": {NAME: VALUE}}`` in UTF-8, every
  value with its type.
"""

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal

from trainjob.errors import Problem
from trainjob.spec import Spec

Scalar = bool | int | float | str
HyperparameterValue = Scalar | list[Scalar]

MAX_VALUE_BYTES = 100_000
"""Linux takes at most 131,072 bytes for one argument or variable (MAX_ARG_STRLEN, execve(2))."""

PARAMS_ENV = "TRAINJOB_PARAMS"
_ARGPARSE_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+", re.ASCII)
"""What argparse of Python 3.11 takes for a value although it starts with -."""


class ArgumentStyle(Spec):
    """How the script reads channels and hyperparameters from its command line."""

    booleans: Literal["value", "pair", "flag"] = "value"
    """`value`: `--x true` and `--x false`. `pair`: `--x` and `--no-x`, as argparse reads them by
    BooleanOptionalAction. `flag`: `--x` if it is true, else nothing, as by store_true."""

    lists: Literal["nargs", "repeat", "json"] = "nargs"
    """`nargs`: `--x 1 2`, as argparse reads them by nargs. `repeat`: `--x 1 --x 2`, as by append;
    of an empty list nothing. `json`: `--x '[1, 2]'`."""

    equals: bool = False
    """Whether name and value are one word, `--x=1`, of channels, too, instead of two words,
    `--x 1`. The words of a list by nargs stay words."""


ARGPARSE_STYLE = ArgumentStyle()
"""What a script reads that uses argparse and nothing special of it."""


def channel_env_name(name: str) -> str:
    """Return the environment variable of a channel: its name in capitals, - as _."""
    return name.upper().replace("-", "_")


def hyperparameter_env_name(name: str) -> str:
    """Return the environment variable that holds a hyperparameter."""
    return f"TRAINJOB_HP_{name.upper().replace('-', '_')}"


def parameter_argv(
    channels: Mapping[str, Path | str],
    hyperparameters: Mapping[str, HyperparameterValue],
    style: ArgumentStyle = ARGPARSE_STYLE,
) -> list[str]:
    """Return the words that give channels, then hyperparameters, to a program.

    Args:
        channels: Absolute folder of each channel, or its url.
        hyperparameters: Values that `hyperparameter_problems` finds nothing wrong with.
        style: How the program reads them.
    """
    words: list[str] = []
    for name, place in channels.items():
        words += _option(name, str(place), style)
    for name, value in hyperparameters.items():
        words += _hyperparameter_words(name, value, style)
    return words


def _hyperparameter_words(
    name: str, value: HyperparameterValue, style: ArgumentStyle
) -> Sequence[str]:
    if isinstance(value, list):
        if style.lists == "json":
            return _option(name, _env_text(value), style)
        if style.lists == "repeat":
            return [word for item in value for word in _option(name, _text(item), style)]
        return [f"--{name}", *(_list_word(item) for item in value)]
    if isinstance(value, bool) and style.booleans != "value":
        off = [f"--no-{name}"] if style.booleans == "pair" else []
        return [f"--{name}"] if value else off
    return _option(name, _text(value), style)


def _option(name: str, text: str, style: ArgumentStyle) -> Sequence[str]:
    is_one_word = style.equals or text.startswith("-")
    return [f"--{name}={text}"] if is_one_word else [f"--{name}", text]


def option_names(name: str, value: HyperparameterValue, style: ArgumentStyle) -> tuple[str, ...]:
    """Return the names of the options that a script declares for a hyperparameter."""
    is_pair = isinstance(value, bool) and style.booleans == "pair"
    return (name, f"no-{name}") if is_pair else (name,)


def parameter_environment(
    channels: Mapping[str, Path | str],
    hyperparameters: Mapping[str, HyperparameterValue],
    params_file: Path,
) -> dict[str, str]:
    """Return the environment variables that give channels and hyperparameters to a program."""
    environment = {channel_env_name(name): str(place) for name, place in channels.items()}
    for name, value in hyperparameters.items():
        environment[hyperparameter_env_name(name)] = _env_text(value)
    environment[PARAMS_ENV] = str(params_file)
    return environment


def write_params(
    path: Path,
    channels: Mapping[str, Path | str],
    hyperparameters: Mapping[str, HyperparameterValue],
) -> None:
    """Write params.json whole or not at all; a file that is there is replaced."""
    document = {
        "channels": {name: str(place) for name, place in channels.items()},
        "hyperparameters": dict(hyperparameters),
    }
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def hyperparameter_problems(
    hyperparameters: Mapping[str, HyperparameterValue], style: ArgumentStyle = ARGPARSE_STYLE
) -> list[Problem]:
    """Return what cannot be given to a program, or would not arrive as it was written."""
    problems: list[Problem] = []
    taken: dict[str, str] = {}
    for name, value in hyperparameters.items():
        problems += value_problems(f"hyperparameters.{name}", value, style)
        env_name = hyperparameter_env_name(name)
        if env_name in taken:
            found = f"hyperparameters.{taken[env_name]}, which has the same variable {env_name}"
            problems.append(
                Problem(f"hyperparameters.{name}", repr(name), found, "rename one of them")
            )
        taken.setdefault(env_name, name)
        for option in option_names(name, value, style)[1:]:
            if option in hyperparameters:
                found = f"hyperparameters.{option}, which is given as --{option}, too"
                problems.append(
                    Problem(f"hyperparameters.{name}", f"--{option}", found, "rename one of them")
                )
    return problems


def value_problems(
    field: str, value: HyperparameterValue, style: ArgumentStyle = ARGPARSE_STYLE
) -> list[Problem]:
    """Return why one value at `field` would not arrive at a program as it was written."""
    if isinstance(value, list):
        problems = [
            p for i, item in enumerate(value) for p in scalar_problems(f"{field}[{i}]", item)
        ]
        if style.lists == "nargs":
            problems += _dash_problems(field, value)
        elif style.lists == "repeat":
            for i, item in enumerate(value):
                problems += _end_of_options_problems(f"{field}[{i}]", item)
    else:
        problems = [*scalar_problems(field, value), *_end_of_options_problems(field, value)]
    size_bytes = len(_env_text(value).encode(errors="surrogatepass"))
    if size_bytes > MAX_VALUE_BYTES:
        asked = f"at most {MAX_VALUE_BYTES:,} bytes"
        do = "put it into a file and give that as an input channel"
        problems.append(Problem(field, asked, f"{size_bytes:,} bytes", do))
    return problems


def scalar_problems(field: str, value: Scalar) -> list[Problem]:
    """Return why a value at `field` cannot be in a job at all."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        # One such number in the parameters of a run, and Prefect 3.8's server lists no runs at all.
        do = "write a smaller number, or give it as a text"
        return [Problem(field, "an integer of at most 64 bits", shown(value), do)]
    if isinstance(value, str) and "\0" in value:
        do = "remove the NUL, which ends every text that a program is given"
        return [Problem(field, "a text without NUL", shown(value), do)]
    if isinstance(value, str) and not _is_unicode(value):
        asked = "a text of characters that UTF-8 can write"
        return [Problem(field, asked, shown(value), "remove the others")]
    return []


def _is_unicode(text: str) -> bool:
    """Tell whether a text has no lone surrogates, which JSON and YAML can write as escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _end_of_options_problems(field: str, value: Scalar) -> list[Problem]:
    if value != "--":
        return []
    # argparse of Python 3.11 reads --name=-- as an empty list.
    found = "the word that ends the options of a command line"
    return [Problem(field, "'--'", found, "write another text")]


def _dash_problems(field: str, values: Sequence[Scalar]) -> Iterable[Problem]:
    """Find texts of a list that argparse would take for an option; a lone - it does not."""
    for i, value in enumerate(values):
        starts_with_dash = isinstance(value, str) and value.startswith("-") and value != "-"
        if starts_with_dash and not _ARGPARSE_NEGATIVE_NUMBER.fullmatch(str(value)):
            asked = "a text that does not start with - inside a list"
            do = "write it without the -, or give it as a hyperparameter of its own"
            yield Problem(f"{field}[{i}]", asked, shown(value), do)


def _text(value: Scalar) -> str:
    """Write a value as a command line has it; repr gives the digits that read back as the float."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def _list_word(value: Scalar) -> str:
    text = _text(value)
    if isinstance(value, float) and value < 0 and "e" in text:
        # argparse of Python 3.11 takes -1e-05 for an option, and a list has no --name=value.
        plain = format(Decimal(text), "f")
        return plain if "." in plain else f"{plain}.0"
    return text


def _env_text(value: HyperparameterValue) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else _text(value)


def shown(value: HyperparameterValue | None) -> str:
    """Return a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
