"""What is under deploy/, and the Dockerfile: as their linters have it, and true of the gateway."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from conftest import ROOT, Running, make_settings, require_program

from gateway import Gateway, Settings
from gateway.app import create_app
from gateway.version import __version__

DEPLOY = ROOT / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNIT = DEPLOY / "presence-gateway.service"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yml").read_text())
OBJECTS: dict[str, Any] = {each["kind"]: each for path in KUBERNETES for each in [yaml.safe_load(path.read_text())]}
POD = OBJECTS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
VARIABLES = {str(field.validation_alias or name).upper() for name, field in Settings.model_fields.items()}
MARGIN = 5
"""Seconds that a node has at the least between its own time-out and being killed."""


def run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def tool(name: str) -> Path:
    """A program that pip has installed."""
    return Path(sys.executable).parent / name


# As the linters have it


def test_the_dockerfile() -> None:
    run(tool("hadolint"), "--failure-threshold", "style", ROOT / "Dockerfile")


def test_the_yaml() -> None:
    run(tool("yamllint"), "--strict", "--config-file", ROOT / ".yamllint", DEPLOY)


def test_the_compose_file() -> None:
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yml")


def test_the_kubernetes_objects() -> None:
    assert set(OBJECTS) == {"Deployment", "Service", "Ingress", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    run(tool("kubernetes-validate"), "--strict", *KUBERNETES)


def test_the_unit(tmp_path: Path) -> None:
    analyze = require_program("systemd-analyze")
    # The gateway is not installed there here; any program will do.
    text = UNIT.read_text().replace("/opt/presence-gateway/bin/presence-gateway", sys.executable)
    (tmp_path / UNIT.name).write_text(text)
    run(analyze, "verify", tmp_path / UNIT.name)
    run(analyze, "security", "--offline=true", "--threshold=15", tmp_path / UNIT.name)  # 1.5 of 10


# True of the gateway


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(ms|s)?", text).groups()  # type: ignore[union-attr]
    return float(number) / (1000 if unit == "ms" else 1)


def unit_options() -> Iterator[tuple[str, str]]:
    for line in UNIT.read_text().splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            yield match[1], match[2]


def of_the_image() -> dict[str, str]:
    (words,) = re.findall(r"^ENV (PATH=(?:[^\\\n]|\\\n)*)", DOCKERFILE, re.MULTILINE)
    return dict(word.split("=", 1) for word in words.replace("\\\n", " ").split())


def of_the_unit() -> dict[str, str]:
    return dict(word.split("=", 1) for name, value in unit_options() if name == "Environment" for word in value.split())


def of_the_pods() -> dict[str, str]:
    return {each["name"]: str(each.get("value")) for each in CONTAINER["env"]}


def of_compose() -> dict[str, str]:
    first, second = (COMPOSE["services"][name]["environment"] for name in ("gateway1", "gateway2"))
    assert first == second
    return dict(first)


PLACES = {"image": of_the_image, "unit": of_the_unit, "pods": of_the_pods, "compose": of_compose}


@pytest.mark.parametrize("place", PLACES)
def test_every_variable_is_a_setting_and_has_a_value_that_is_taken(place: str) -> None:
    said = {name: value for name, value in PLACES[place]().items() if name != "PATH"}
    assert said
    assert set(said) <= VARIABLES
    make_settings(**{name.lower(): value for name, value in said.items() if "$" not in value and value != "None"})


def test_every_variable_that_a_secret_is_to_have_is_a_setting() -> None:
    keys = {each["name"]: each["valueFrom"]["secretKeyRef"]["key"] for each in CONTAINER["env"] if "valueFrom" in each}
    assert set(keys) == set(keys.values()) == {"REDIS_URL", "JWT_SECRET", "SERVICE_API_KEYS"}


def test_nobody_is_killed_who_still_drains() -> None:
    given = {name: value for name, value in unit_options() if name in {"TimeoutStopSec", "KillSignal"}}
    assert given["KillSignal"] == "SIGTERM"
    assert "STOPSIGNAL SIGTERM" in DOCKERFILE
    compose = {COMPOSE["services"][name]["stop_grace_period"] for name in ("gateway1", "gateway2")}
    _sleep, pause = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    for variables, before, limit in (
        (of_the_unit(), 0.0, seconds(given["TimeoutStopSec"])),
        (of_compose(), 0.0, seconds(*compose)),
        (of_the_pods(), float(pause), float(POD["terminationGracePeriodSeconds"])),
    ):
        drains = float(variables["DRAIN_DELAY"]) + float(variables["SHUTDOWN_TIMEOUT"])
        assert before + drains + MARGIN <= limit


def test_a_node_is_out_before_it_drains() -> None:
    haproxy = (DEPLOY / "haproxy.cfg").read_text()
    ((every, times),) = re.findall(r"check inter (\w+) fall (\d+)", haproxy)
    for variables in (of_compose(), of_the_unit()):
        assert float(variables["DRAIN_DELAY"]) > seconds(every) * int(times)
    probe = CONTAINER["readinessProbe"]
    _sleep, pause = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert float(pause) > probe["periodSeconds"] * probe["failureThreshold"]


def test_ports_are_the_gateway_s() -> None:
    port = make_settings().port
    assert re.findall(r"^EXPOSE (\d+)", DOCKERFILE, re.MULTILINE) == [str(port)]
    assert of_the_image()["PORT"] == of_the_unit()["PORT"] == str(port)
    assert CONTAINER["ports"] == [{"name": "http", "containerPort": port}]
    notes = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/port"] == str(port)
    (service,) = OBJECTS["Service"]["spec"]["ports"]
    assert service["targetPort"] == "http"
    assert re.findall(r"server node\d [\d.]+:(\d+)", (DEPLOY / "haproxy.cfg").read_text()) == [str(port)] * 2


def routes() -> set[str]:
    app = create_app(Gateway(make_settings(pusher_app_id="1", pusher_app_key="key", pusher_app_secret="secret")))
    return {resource.canonical for resource in app.router.resources()}


def test_health_is_asked_for_where_it_is_told() -> None:
    asked = {CONTAINER[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    asked |= set(re.findall(r"/health/\w+", DOCKERFILE + (DEPLOY / "haproxy.cfg").read_text()))
    asked.add(OBJECTS["Deployment"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"])
    assert asked == {"/health/live", "/health/ready", "/metrics"}
    assert asked <= routes()
    # Whether it lives has nothing to do with whether Redis does.
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert CONTAINER["readinessProbe"]["httpGet"]["path"] == "/health/ready"


def test_the_ingress_and_haproxy_show_the_public_the_same() -> None:
    (rule,) = OBJECTS["Ingress"]["spec"]["rules"]
    paths = {(each["pathType"], each["path"]) for each in rule["http"]["paths"]}
    haproxy = (DEPLOY / "haproxy.cfg").read_text()
    ((begin, exact),) = re.findall(r"acl public path_beg (.+)\n +acl public path (.+)", haproxy)
    assert paths == {("Prefix", path) for path in begin.split()} | {("Exact", path) for path in exact.split()}
    known = routes()
    for kind, path in paths:
        assert path in known or (kind == "Prefix" and any(each.startswith(path) for each in known)), path
    assert {each["backend"]["service"]["name"] for each in rule["http"]["paths"]} == {"presence-gateway"}


async def test_the_autoscaler_goes_by_a_metric_that_there_is(serve: Callable[..., Awaitable[Running]]) -> None:
    metrics = OBJECTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    (name,) = (each["pods"]["metric"]["name"] for each in metrics if each["type"] == "Pods")
    running = await serve()
    async with aiohttp.ClientSession(running.url) as session, session.get("/metrics") as response:
        assert re.search(rf'^{name}{{door="socketio"}} 0.0$', await response.text(), re.MULTILINE)


def test_images_are_pinned_and_ours_is_this_release() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    services = {service["image"] for service in COMPOSE["services"].values()}
    ours = f"presence-gateway:{__version__}"
    assert ours in services
    assert CONTAINER["image"].endswith(f"/{ours}")
    assert f"--tag {ours}" in DOCKERFILE
    assert len(set(bases)) == 1  # what is compiled in the one runs in the other
    for image in {*bases, *services} - {ours}:
        assert re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+-[a-z-]*(bookworm|trixie)", image), image


def test_it_runs_as_nobody_who_may_write_anything() -> None:
    ((user, group),) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    context = POD["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    assert context["runAsNonRoot"] is True
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    assert [COMPOSE["services"][name]["read_only"] for name in ("gateway1", "gateway2")] == [True, True]
    assert ("DynamicUser", "yes") in set(unit_options())


def test_into_the_image_goes_what_the_dockerfile_copies_and_nothing_else() -> None:
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]
    }
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_compose_puts_the_nodes_where_haproxy_looks() -> None:
    servers = re.findall(r"server node\d ([\d.]+):", (DEPLOY / "haproxy.cfg").read_text())
    services = COMPOSE["services"]
    assert [services[name]["networks"]["inside"]["ipv4_address"] for name in ("gateway1", "gateway2")] == servers
    assert of_compose()["TRUSTED_PROXIES"] == services["balancer"]["networks"]["inside"]["ipv4_address"]
    (volume,) = services["balancer"]["volumes"]
    assert (DEPLOY / volume.split(":")[0]).is_file()


def test_all_objects_are_about_the_same_pods() -> None:
    labels = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"],
        OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        OBJECTS["Service"]["spec"]["selector"],
    ):
        assert selector == labels
    target = OBJECTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == OBJECTS["Deployment"]["metadata"]["name"]
    assert "replicas" not in OBJECTS["Deployment"]["spec"]  # or each apply would undo what the autoscaler has done
    assert OBJECTS["HorizontalPodAutoscaler"]["spec"]["minReplicas"] > 1


def test_the_page_for_operators_names_what_there_is() -> None:
    page = (ROOT / "docs" / "operations" / "deploy.md").read_text()
    theirs = {"PUBLIC_PORT"}  # of compose.yml
    named = {name for name in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", page) if name not in theirs}
    assert named <= VARIABLES
    assert {"DRAIN_DELAY", "DRAIN_RATE", "SHUTDOWN_TIMEOUT"} <= named
    assert "${PUBLIC_PORT:-80}:80" in COMPOSE["services"]["balancer"]["ports"]
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"audit", "sbom", "lint"} <= set(re.findall(r"make ([a-z]+)", page)) <= set(targets)
    for path in re.findall(r"`((?:deploy|tests)/[\w./-]+)`", page):
        assert (ROOT / path).exists() or path == "deploy/.env", path
    assert f"presence-gateway:{__version__}" in page
    assert re.findall(r"python:[\w.-]+", page) == [DOCKERFILE.split("FROM ")[1].split()[0]]
