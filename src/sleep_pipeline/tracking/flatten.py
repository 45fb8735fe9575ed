"""Turns what a pipeline was given into flat names and texts that a run table can show."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from pydantic import BaseModel

_PREFIX = "params:"
_NOT_IN_A_NAME = re.compile(r"[^\w\-. :/]")


def clean_name(name: str) -> str:
    """Return `name` with the characters that MLflow refuses in names replaced by `_`."""
    return _NOT_IN_A_NAME.sub("_", name)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, str):
        yield clean_name(name), value
    else:
        # JSON rather than repr, so that a list of a YAML file and of a pydantic model look the same.
        yield clean_name(name), json.dumps(value, default=str)


def flatten(name: str, value: Any) -> dict[str, str]:
    """Return `value`, a pydantic model, mapping or scalar, as `name.key.key -> text`."""
    return dict(_leaves(name, value))


def used_parameters(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> dict[str, str]:
    """Return the flattened parameters that the nodes of `pipeline` take, and no others."""
    flat: dict[str, str] = {}
    for dataset in sorted(pipeline.inputs()):
        if dataset == "parameters":
            flat.update(flatten("", catalog.load(dataset)))
        elif dataset.startswith(_PREFIX):
            flat.update(flatten(dataset.removeprefix(_PREFIX), catalog.load(dataset)))
    return flat
