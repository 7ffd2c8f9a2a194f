"""
Write the reference pages from what they describe: the commands, the models of configuration, settings and files, the routes.

    python docs/make_reference.py [FOLDER]

FOLDER is docs/reference by default. A test holds the pages to the code.
"""

import argparse
import importlib
import inspect
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from typer.models import ArgumentInfo

import ddcat_bench.gate.thresholds
from ddcat.cli import PARTS
from ddcat.manifest import Manifest
from ddcat.passport import Passport
from ddcat_serve.http.app import create_app
from ddcat_serve.settings import PREFIX, Settings
from ddcat_train.config import Config

OLDER = (
    "`ddcat-train`, `ddcat-data` and `ddcat-export` are older names of `ddcat train`, `ddcat data` and `ddcat export`. "
    "`ddcat-bench X` is `ddcat X`, `ddcat-serve run` is `ddcat serve`, and `ddcat-serve X` is `ddcat X`."
)


def main() -> None:
    """Write all pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "reference")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text.rstrip() + "\n", encoding="utf-8")


def pages() -> dict[str, str]:
    """Give the text of each page by its name."""
    return {
        "cli.md": "\n\n".join(
            ["# Commands", OLDER, *(part for words, command in commands() for part in about(words, command))]
        ),
        "configuration.md": configuration(),
        "settings.md": settings(),
        "manifest.md": files(),
        "http.md": http(),
        "limits.md": gate_limits(),
    }


class Parameter(NamedTuple):
    """An argument or an option of a command."""

    names: tuple[str, ...]  # of an option; empty for an argument
    value: str
    default: str
    help: str


def commands() -> Iterator[tuple[str, Any]]:
    """Each command in full, and what Typer has of it."""
    for name, part in PARTS.items():
        below = {command_name(command): command for command in importlib.import_module(part.module).app.registered_commands}
        if part.command:
            yield f"ddcat {name}", below[part.command]
        elif len(below) == 1:
            yield f"ddcat {name}", *below.values()
        else:
            yield from ((f"ddcat {name} {word}", command) for word, command in below.items())


def about(words: str, command: Any) -> Iterator[str]:
    """What `--help` says of a command."""
    found = parameters(command)
    arguments = [parameter.value for parameter in found if not parameter.names]
    yield f"## `{words}`"
    yield f"```\n{' '.join([words, *arguments])} [OPTIONS]\n```"
    yield inspect.cleandoc(command.help or command.callback.__doc__ or "")
    rows = [
        f"| {', '.join(f'`{option}`' for option in names)} | {cell(value)} | {default} | {cell(text)} |"
        for names, value, default, text in found
        if names
    ]
    yield "\n".join(["| option | value | default | meaning |", "|---|---|---|---|", *rows])


def command_name(command: Any) -> str:
    """What a command is called."""
    return command.name or command.callback.__name__.replace("_", "-")


def parameters(command: Any) -> list[Parameter]:
    """The arguments and options of a command, from the signature of its function."""
    found = []
    for parameter in inspect.signature(command.callback, eval_str=True).parameters.values():
        annotation, about = get_args(parameter.annotation)[:2]
        if about.hidden:
            continue
        value, metavar, required = value_name(annotation), about.metavar or "", parameter.default is inspect.Parameter.empty
        if isinstance(about, ArgumentInfo):
            found.append(Parameter((), metavar or parameter.name.upper(), "", about.help or ""))
            continue
        first = (about.default,) if isinstance(about.default, str) else ()  # typer keeps the first name there
        declared = (*first, *(about.param_decls or ())) or (f"--{parameter.name.replace('_', '-')}",)
        names = tuple(part for name in declared for part in name.split("/"))
        shown = about.show_default if isinstance(about.show_default, str) else parameter.default
        default = "required" if required else "" if shown is None or shown is False or shown in ((), "", []) else f"`{shown}`"
        found.append(Parameter(names, metavar or value, default, about.help or ""))
    return found


def value_name(annotation: Any) -> str:
    """What an option takes: nothing where it is a switch."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{choice.value}`" for choice in annotation)
    if get_args(annotation):
        return next(value_name(part) for part in get_args(annotation) if part is not type(None))
    return {bool: "", int: "number", float: "number", Path: "path"}.get(annotation, "text")


def cell(text: str) -> str:
    """Text in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def configuration() -> str:
    """Each key of a training run's configuration."""
    schema = Config.model_json_schema()
    lines = [
        "# Configuration of a training run",
        "",
        "The keys of a YAML file for `ddcat train`, and of `--set SECTION.KEY=VALUE`. `ddcat train --show PRESET` prints all",
        "values of a preset. An unknown key is refused. How to use them: [training](../training.md).",
    ]
    top = {name: part for name, part in schema["properties"].items() if "$ref" not in part and "allOf" not in part}
    for name, part in schema["properties"].items():
        if name in top:
            continue
        section = schema["$defs"][reference(part)]
        lines += ["", f"## `{name}`", "", section.get("description", ""), "", *table(section, f"{name}.")]
    lines += ["", "## Beside the sections", "", *table(schema | {"properties": top}, "")]
    return "\n".join(lines)


def settings() -> str:
    """Each setting of the server."""
    schema = Settings.model_json_schema()
    lines = [
        "# Settings of the server",
        "",
        "Flags of `ddcat serve`, environment variables, or keys of the YAML file that `--config` names, in this order of",
        "precedence. `GET /v2` shows those that a server runs with.",
        "",
        "| key | flag | variable | type | default | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, part in schema["properties"].items():
        flag, meaning = f"`--{name.replace('_', '-')}`", part.get("description", "")
        lines.append(f"| `{name}` | {flag} | `{PREFIX}{name.upper()}` | {kind(part)} | {default(part)} | {meaning} |")
    return "\n".join(lines)


def files() -> str:
    """Each key of the files of a bundle."""
    lines = [
        "# Files of a bundle",
        "",
        "Strict: an unknown key, a missing one or another type is refused. How they come to be: [export](../export.md),",
        "[the gate](../gate.md).",
    ]
    for title, model in (("manifest.json", Manifest), ("passport.json", Passport)):
        schema = model.model_json_schema()
        lines += ["", f"## {title}", "", *table(schema, "")]
        for name, part in schema.get("$defs", {}).items():
            if "properties" in part:
                lines += ["", f"### {name}", "", part.get("description", ""), "", *table(part, "")]
    return "\n".join(lines)


def http() -> str:
    """Each route of the server; errors that all routes may answer with stand once."""
    described = create_app({}, Settings()).openapi()
    routes = [(method, path, about) for path, methods in described["paths"].items() for method, about in methods.items()]
    errors = {status: answer["description"] for _, _, about in routes for status, answer in about["responses"].items()}
    lines = [
        "# HTTP",
        "",
        "What `GET /openapi.json` of a running server describes in full, with schemas and examples. The same models are served",
        "over gRPC by the Open Inference Protocol. How to use them: [serving](../serving.md).",
        "",
        'Errors are JSON, `{"error": "what is wrong, and what to do"}`:',
        "",
        "| status | what it means |",
        "|---|---|",
        *(
            f"| {status} | {cell(text)} |"
            for status, text in sorted(errors.items())
            if not status.startswith("2") and status != "422"
        ),
    ]
    for method, path, about in routes:
        lines += ["", f"## `{method.upper()} {path}`", "", about.get("description") or about["summary"], ""]
        for parameter in about.get("parameters", ()):
            text = f": {parameter['description']}" if "description" in parameter else ""
            lines.append(f"- `{parameter['name']}` ({parameter['in']}, {kind(parameter['schema'])}){text}")
        takes = ", ".join(f"`{form}`" for form in about.get("requestBody", {}).get("content", ()))
        lines += [f"- body: {takes}"] if takes else []
        done = next(answer for status, answer in about["responses"].items() if status.startswith("2"))
        lines += [f"- answer: {', '.join(f'`{form}`' for form in done.get('content', ()))}"]
    return "\n".join(lines)


def gate_limits() -> str:
    """The file of limits, as it is."""
    text = Path(ddcat_bench.gate.thresholds.__file__).with_name("limits.yaml").read_text(encoding="utf-8")
    return f"# Limits of the gate\n\nWhat `ddcat gate` allows, and the form of a file for `--thresholds`.\n\n```yaml\n{text}```"


# --- schemas ---


def table(schema: dict[str, Any], before: str) -> Iterator[str]:
    """Rows of a model's keys."""
    yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    required = schema.get("required", ())
    for name, part in schema["properties"].items():
        said = "" if name in required else default(part)
        yield f"| `{before}{name}` | {kind(part)} | {said} | {cell(part.get('description', ''))} |"


def kind(part: dict[str, Any]) -> str:
    """What values a key takes."""
    if "$ref" in part or "allOf" in part:
        return reference(part)
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(kind(choice) for choice in part["anyOf"]))
    if "enum" in part or "const" in part:
        return ", ".join(f"`{choice}`" for choice in part.get("enum", [part.get("const")]))
    if part.get("type") == "array":
        items = [kind(item) for item in part.get("prefixItems", ())] or [kind(part.get("items", {}))]
        return f"list of {', '.join(items)}"
    if part.get("type") == "object":
        values = part.get("additionalProperties")
        return f"mapping to {kind(values)}" if isinstance(values, dict) else "mapping"
    return part.get("type", "any").replace("null", "none") + limits(part)


def limits(part: dict[str, Any]) -> str:
    """The range of a number."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {part[name]:g}" for name, sign in signs.items() if name in part]
    return f", {', '.join(found)}" if found else ""


def reference(part: dict[str, Any]) -> str:
    """The name of the model that a key holds."""
    chosen: str = (part.get("$ref") or part["allOf"][0]["$ref"]).rpartition("/")[2]
    return chosen


def default(part: dict[str, Any]) -> str:
    """What a key is where it is left out."""
    if "default" not in part:
        return ""
    value = part["default"]
    if value is None or value in ([], {}):
        return "none"
    return f"`{json.dumps(value) if not isinstance(value, str) else value}`"


if __name__ == "__main__":
    main()
