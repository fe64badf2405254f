"""YAML in, checked pydantic models out, with messages that a person can act on."""

from __future__ import annotations

import copy
import difflib
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from aalnet.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
COMPARISONS = {
    "greater than or equal to": ">=",
    "greater than": ">",
    "less than or equal to": "<=",
    "less than": "<",
}
SHORT = reprlib.Repr()  # how a wrong value is shown: never whole, it may be huge
SHORT.maxstring = SHORT.maxother = 60
SHORT.maxlevel = 2


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-3` and `2:4` as YAML 1.2 does, and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.YAMLError("a key must be a plain word")
            if key in keys:
                raise yaml.YAMLError(f"the key `{key}` stands twice")
            keys.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)
# YAML 1.1 reads `2:4` as 124, a number to the base 60; here it is a range of workers.
for _first in "123456789":
    _Loader.yaml_implicit_resolvers[_first].insert(
        0, ("tag:yaml.org,2002:str", re.compile(r"^\d+(:\d+)+$"))
    )


def read_mapping(path: Path | str) -> dict[str, Any]:
    """The YAML mapping in a file. Raises ConfigError: missing, unreadable or no mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"settings file `{path}` does not exist (looked in {Path.cwd()}); check the path"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file `{path}` cannot be read: {error}") from error
    return parse_mapping(text, origin=str(path))


def parse_mapping(text: str, origin: str) -> dict[str, Any]:
    """The YAML mapping in a text; an empty text is an empty mapping."""
    try:
        values = yaml.load(text, Loader=_Loader)  # noqa: S506, a SafeLoader
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"`{origin}` is not valid YAML: {reason}") from None
    except RecursionError:
        raise ConfigError(f"`{origin}` is nested too deeply to be settings") from None
    except (ValueError, KeyError, TypeError) as error:  # of a value that its tag does not fit
        raise ConfigError(f"`{origin}` is not valid YAML: {SHORT.repr(str(error))}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(
            f"`{origin}` must hold `key: value` settings, got a {type(values).__name__}"
        )
    return values


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with each `dotted.key=value` set; values are read as YAML."""
    result = copy.deepcopy(values)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted.strip():
            raise ConfigError(f"--set wants key=value, got `{override}`; e.g. objective.eta=0.3")
        *parents, key = dotted.strip().split(".")
        target = result
        for parent in parents:
            if target.get(parent) is None:
                target[parent] = {}
            target = target[parent]
            if not isinstance(target, dict):
                raise ConfigError(f"--set {dotted}: `{parent}` is a value, not a group of settings")
        target[key] = parse_mapping(f"value: {text or 'null'}", origin=f"--set {override}")["value"]
    return result


def validate(model: type[Model], values: dict[str, Any]) -> Model:
    """Build `model` from plain data; an empty section means its defaults.

    Raises:
        ConfigError: one line per problem, each with the dotted name, the rule and the value.
    """
    sections = {name for name in _known_keys(model) if "." in name}
    empty = {key for key in values if any(name.startswith(f"{key}.") for name in sections)}
    filled = {k: {} if v is None and k in empty else v for k, v in values.items()}
    try:
        return model.model_validate(filled)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, error))) from None


def _explain(model: type[BaseModel], error: ValidationError) -> list[str]:
    """One line per setting that is wrong; the members of a union share one."""
    names = _known_keys(model)
    lines: list[str] = []
    rules: dict[str, list[str]] = {}
    inputs: dict[str, Any] = {}
    for problem in error.errors():
        location = [part for part in problem["loc"] if isinstance(part, str)]
        if problem["type"] == "extra_forbidden":
            lines.append(_unknown(".".join(location), names))
        elif problem["type"] == "value_error" and not location:
            lines.append(str(problem["ctx"]["error"]))
        else:
            while location and ".".join(location) not in names:
                location.pop()  # pydantic appends the member of a union
            dotted = ".".join(location) or "settings"
            rules.setdefault(dotted, []).append(_rule(dict(problem)))
            inputs.setdefault(dotted, problem["input"])
    lines += [
        f"{dotted} must be {' or '.join(dict.fromkeys(found))}, got {SHORT.repr(inputs[dotted])}"
        for dotted, found in rules.items()
    ]
    return lines


def _rule(problem: dict[str, Any]) -> str:
    """What pydantic asks for, in this project's words."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "a group of settings"
    if kind == "invalid_key":
        return "a group of settings whose names are words"
    if kind == "too_short":
        return f"a list of at least {context['min_length']}"
    rule = str(problem["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    for words, sign in COMPARISONS.items():
        rule = rule.replace(words, sign)
    return rule


def _unknown(dotted: str, names: dict[str, None]) -> str:
    leaf = dotted.rpartition(".")[2]
    close = difflib.get_close_matches(dotted, names, n=1, cutoff=0.7) or [
        name for name in names if name.rpartition(".")[2] == leaf
    ]
    hint = f"; did you mean `{close[0]}`?" if close else "; see `aalnet schema` for all settings"
    return f"`{dotted}` is not a setting{hint}"


def _known_keys(model: type[BaseModel], prefix: str = "") -> dict[str, None]:
    keys: dict[str, None] = {}
    for name, field in model.model_fields.items():
        dotted = prefix + (field.alias or name)
        keys[dotted] = None
        for kind in _flatten(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys |= _known_keys(kind, f"{dotted}.")
    return keys


def _flatten(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [inner for part in get_args(annotation) for inner in _flatten(part)]
    return [annotation]
