"""The rooms of the server package, and which of them use which."""

import ast
from pathlib import Path

import ddcat_serve

ROOMS: dict[str, set[str]] = {
    "observe": set(),
    "inference": {"observe"},
    "http": {"observe", "inference"},
    "rpc": {"observe", "inference", "http"},
    "deploy": {"observe", "inference", "http"},
}


def test_a_room_uses_only_those_below_it() -> None:
    package = Path(ddcat_serve.__file__).parent
    assert {file.parent.name for file in package.glob("*/__init__.py")} == set(ROOMS)
    for room, below in ROOMS.items():
        for file in (package / room).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddcat_serve."):
                    used = str(node.module).split(".")[1]
                    assert used in {room, *below, "errors", "settings"}, f"{file} imports {node.module}"
