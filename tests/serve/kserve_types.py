"""Run where the package kserve is: hold JSON from the standard input against its types, and print what does not fit."""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import kserve.models
import kubernetes.client.models

PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def misfits(value: Any, kind: str, where: str) -> Iterator[str]:
    """
    Every key must be one that the type has, and every value of its type; `object` is anything.

    The two packages write types in two ways: list[X] and dict(str, X), or List[X] and Dict[str, X].
    """
    if inner := re.fullmatch(r"[lL]ist\[(.+)\]", kind):
        if isinstance(value, list):
            for place, item in enumerate(value):
                yield from misfits(item, inner[1], f"{where}[{place}]")
        else:
            yield f"{where} is not a list"
    elif inner := re.fullmatch(r"[dD]ict[\[(]str, (.+)[\])]", kind):
        if isinstance(value, dict):
            for key, item in value.items():
                yield from misfits(item, inner[1], f"{where}.{key}")
        else:
            yield f"{where} is not a mapping"
    elif kind in PLAIN:
        if not isinstance(value, PLAIN[kind]) or (isinstance(value, bool) and kind != "bool"):
            yield f"{where} is not of the type {kind}"
    elif kind != "object":
        yield from misfits_of_model(value, kind, where)


def misfits_of_model(value: Any, kind: str, where: str) -> Iterator[str]:
    model = getattr(kserve.models, kind, None) or getattr(kubernetes.client.models, kind)
    if not isinstance(value, dict):
        yield f"{where} is not a mapping"
        return
    types = {key: model.openapi_types[name] for name, key in model.attribute_map.items()}
    for key, item in value.items():
        if key in types:
            yield from misfits(item, types[key], f"{where}.{key}")
        else:
            yield f"{where} has no {key}"


if __name__ == "__main__":
    for line in misfits(json.load(sys.stdin), "V1beta1InferenceService", "service"):
        print(line)
