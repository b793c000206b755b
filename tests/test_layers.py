"""Imports run downwards, and each layer keeps to what it may know."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "gateway"
MODULES = {
    ".".join(("gateway", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports_of(name: str, *, for_types_too: bool = True) -> set[str]:
    """What a module imports, by full name."""
    found: set[str] = set()
    skipped: set[ast.AST] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not for_types_too:
            skipped.update(child for statement in node.body for child in ast.walk(statement))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_no_circle() -> None:
    graph = {name: imports_of(name, for_types_too=False) & set(MODULES) - {name} for name in MODULES}
    graph["gateway"] = set()  # the public names, which every import of the package passes through
    while graph:
        free = {name for name, needs in graph.items() if not needs & set(graph)}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


def test_the_model_is_pure() -> None:
    allowed = {"__future__", "datetime", "enum", "typing", "msgspec"}
    assert {name.split(".")[0] for name in imports_of("gateway.presence.model")} <= allowed


@pytest.mark.parametrize("door", sorted(name for name in MODULES if name.startswith("gateway.doors.")))
def test_a_door_knows_no_adapter_and_no_internals(door: str) -> None:
    imported = imports_of(door)
    assert not {name for name in imported if name.startswith("gateway.presence.store_")}
    assert not {name for name in imported if name.split(".")[0] == "engineio"}


def test_the_socket_doors_know_neither_each_other_nor_the_store() -> None:
    for door in ("socketio", "websocket"):
        imported = imports_of(f"gateway.doors.{door}")
        assert not {name for name in imported if name.startswith("gateway.doors.")}
        assert not {name for name in imported if name.startswith("gateway.presence.store")}


def rooms_of(name: str) -> set[str]:
    """What of this package a module imports: a module of a room by the room's name, any other by its own."""
    ours = {module for module in imports_of(name) if module in MODULES}
    return {".".join(module.split(".")[:2]) for module in ours}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("gateway.presence")))
def test_presence_knows_nothing_above_it(name: str) -> None:
    allowed = {"gateway", "gateway.errors", "gateway.presence", "gateway.runtime", "gateway.wire"}
    if name in {"gateway.presence.store_redis", "gateway.presence.encoding"}:
        allowed |= {"gateway.redis"}
    assert rooms_of(name) <= allowed


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("gateway.redis")))
def test_the_way_to_redis_knows_nothing_of_what_goes_over_it(name: str) -> None:
    allowed = {"gateway", "gateway.errors", "gateway.redis", "gateway.runtime"}
    if name == "gateway.redis.bus":
        allowed |= {"gateway.nodes"}
        assert "gateway.nodes.cluster" not in imports_of(name)  # but the port it is an adapter of
    assert rooms_of(name) <= allowed


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("gateway.runtime")))
def test_what_every_room_stands_on_knows_no_room(name: str) -> None:
    assert rooms_of(name) <= {"gateway", "gateway.runtime"}


def test_the_root_has_the_wiring_and_what_every_room_needs() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    everywhere = {"__init__", "errors", "settings", "settings_words", "telemetry", "version", "wire"}
    assert {name.split(".")[1] for name in MODULES if name.count(".") == 1} - rooms | {"__init__"} == {
        *everywhere,
        *("__main__", "app", "client", "parts", "tracing"),
    }


def test_redis_is_reached_in_one_room_and_by_the_adapters() -> None:
    users = {name for name in MODULES if "redis" in {module.split(".")[0] for module in imports_of(name)}}
    assert {name for name in users if not name.startswith("gateway.redis.")} == {"gateway.presence.store_redis"}


def test_python_socketio_is_touched_in_one_room() -> None:
    users = {name for name in MODULES if {"socketio", "engineio"} & {i.split(".")[0] for i in imports_of(name)}}
    assert {name for name in users if not name.startswith("gateway.engine.")} == {
        "gateway.doors.adminui",
        "gateway.doors.echo",
        "gateway.doors.socketio",
    }


def test_sqlalchemy_is_imported_in_one_room_and_only_where_it_is_needed() -> None:
    users = {name for name in MODULES if "sqlalchemy" in {module.split(".")[0] for module in imports_of(name)}}
    assert users == {"gateway.export.address", "gateway.export.database", "gateway.export.tables"}
    code = "import sys, gateway.__main__; assert not {'sqlalchemy', 'psycopg'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_opentelemetry_is_imported_in_one_module() -> None:
    users = {name for name in MODULES if "opentelemetry" in {module.split(".")[0] for module in imports_of(name)}}
    assert users == {"gateway.tracing"}
    importers = {name for name in MODULES if "gateway.tracing" in imports_of(name, for_types_too=False)}
    assert importers == {"gateway.parts"}


def test_no_file_wants_to_be_two() -> None:
    assert {name: lines for name, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > 600} == {}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("gateway.schema")))
def test_what_describes_the_events_knows_the_types_of_the_wire_alone(name: str) -> None:
    allowed = {"gateway", "gateway.schema", "gateway.wire", "gateway.errors", "gateway.version"}
    assert rooms_of(name) - allowed <= {"gateway.channels"}
    assert {module for module in imports_of(name) if module.startswith("gateway.channels.")} <= {
        "gateway.channels.wire",
        "gateway.channels.messages_wire",
    }
