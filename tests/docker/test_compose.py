"""The compose files: checked against the Compose specification, against the settings, and where a wheel has the server,
by running the very commands they name."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema.validators import validator_for

from darkroom.config import load_settings
from darkroom.stack.leash import held_by, leashed
from darkroom.stack.servers import find_rclone, find_valkey, free_port, wait_until
from darkroom.storage import Storage
from darkroom.web import check_bind

Service = dict[str, Any]
Services = dict[str, Service]
OURS = {"darkroom-web", "darkroom-worker"}
VALUES = {"POSTGRES_PASSWORD": "p0", "VALKEY_PASSWORD": "v0", "S3_SECRET": "s3cret", "SECRET_KEY": "k0"}
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class Instruction(Protocol):
    @property
    def word(self) -> str: ...


class Stage(Protocol):
    @property
    def instructions(self) -> tuple[Instruction, ...]: ...


class Loader(yaml.SafeLoader):
    """Reads Compose's own tags as the bare value."""


Loader.add_constructor("!reset", lambda _loader, _node: [])


def _load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load(path.read_text(), Loader)
    return loaded


@pytest.fixture(scope="session")
def compose(root: Path) -> dict[str, Any]:
    return _load(root / "docker/compose.yaml")


@pytest.fixture(scope="session")
def services(compose: dict[str, Any]) -> Services:
    found: Services = compose["services"]
    return found


@pytest.fixture(scope="session")
def ours(services: Services) -> Services:
    return {name: service for name, service in services.items() if service["image"] in OURS}


def fill_in(value: Any) -> Any:
    """Put VALUES where Compose would put the variables of .env."""
    if isinstance(value, dict):
        return {name: fill_in(each) for name, each in value.items()}
    if isinstance(value, list):
        return [fill_in(each) for each in value]
    if not isinstance(value, str):
        return value
    return VARIABLE.sub(lambda found: VALUES.get(found[1]) or (found[3] if found[2] == "-" else ""), value)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cpu.yaml"])
def test_file_keeps_the_compose_specification(root: Path, name: str) -> None:
    assert _faults(_load(root / "docker" / name)) == []


def test_schema_refuses_what_compose_would_refuse() -> None:
    """With a validator for another draft than the schema's, half of its rules say nothing."""
    assert _faults({"services": {"web": {"image": "web", "readonly": True}}})
    assert _faults({"services": {"web": {"image": "web", "depends_on": {"database": {"condition": "healthy"}}}}})
    assert _faults({"services": {"web": {"image": "web", "healthcheck": {"test": 5}}}})


def _faults(composed: dict[str, Any]) -> list[str]:
    schema = get_builtin_schema("vendor.compose-spec")
    return [error.message for error in validator_for(schema)(schema).iter_errors(composed)]


def test_every_part_is_there(services: Services) -> None:
    assert {"database", "valkey", "objects", "migrate", "web", "worker"} <= set(services)


def test_environment_names_of_our_images_are_known(ours: Services, known_names: set[str]) -> None:
    assert len(ours) >= 4
    for service in ours.values():
        assert set(service["environment"]) <= known_names


@pytest.mark.parametrize("name", ["web", "worker", "worker-1", "migrate", "bucket"])
def test_settings_take_the_environment(services: Services, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in fill_in(services[name]["environment"]).items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    assert settings.database == "postgresql+psycopg://darkroom:p0@database:5432/darkroom"
    assert settings.redis_url == "redis://:v0@valkey:6379/0"
    assert settings.s3_endpoint_url == "http://objects:9000"


def test_web_may_listen_where_its_image_tells_it_to(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in fill_in(services["web"]["environment"]).items():
        monkeypatch.setenv(variable, value)
    check_bind(load_settings(host="0.0.0.0"))


def test_ports_are_published_on_this_host_only(services: Services) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"web"}
    assert all(port.startswith("127.0.0.1:") for port in published["web"])


def test_only_the_web_can_be_reached_from_outside_its_network(compose: dict[str, Any], services: Services) -> None:
    assert compose["networks"]["inside"] == {"internal": True}
    assert {name for name, service in services.items() if service["networks"] != ["inside"]} == {"web"}


def test_every_container_is_hardened(services: Services) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "network_mode", "pid", "ipc"} & set(service), name
        assert not any("docker.sock" in str(volume) for volume in service.get("volumes", ())), name
    assert {name for name, service in services.items() if "cap_add" in service} == {"database"}


def test_home_of_our_containers_is_writable_by_their_user(ours: Services) -> None:
    for service in ours.values():
        assert "/var/lib/darkroom:uid=10001,gid=10001,mode=0700" in service["tmpfs"]


def test_no_secret_has_a_default(root: Path) -> None:
    text = (root / "docker/compose.yaml").read_text()
    for name, mark, _ in VARIABLE.findall(text):
        assert mark == ("?" if name in VALUES else "-"), name
    offered = dict(re.findall(r"^(\w+)=(.*)$", (root / "docker/.env.example").read_text(), re.MULTILINE))
    assert set(offered) == {name for name, _, _ in VARIABLE.findall(text)}
    assert all(offered[name] == "" for name in VALUES)


def test_readme_fills_every_secret_with_a_value_of_its_own(root: Path, tmp_path: Path) -> None:
    block = re.search(r"```sh\n(cp .*?)docker compose", (root / "docker/README.md").read_text(), re.DOTALL)
    assert block
    (tmp_path / "docker").mkdir()
    shutil.copy(root / "docker/.env.example", tmp_path / "docker")
    openssl = tmp_path / "openssl"  # not on every machine that runs the tests
    openssl.write_text("#!/bin/sh\necho random >> made\nwc -l < made | tr -d ' '\n")
    openssl.chmod(0o700)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["sh", "-ec", block[1]], cwd=tmp_path, env={"PATH": path}, check=True, timeout=20)
    filled = tmp_path / "docker/.env"
    values = dict(re.findall(r"^(\w+)=(.*)$", filled.read_text(), re.MULTILINE))
    assert {values[name] for name in VALUES} == {"1", "2", "3", "4"}
    assert filled.stat().st_mode & 0o077 == 0


def test_secrets_of_env_file_stay_out_of_git_and_out_of_the_image(root: Path) -> None:
    assert ".env" in (root / ".gitignore").read_text().split()
    assert ".env" not in (root / "docker/Dockerfile.dockerignore").read_text()  # everything unnamed is left out


def test_dependencies_can_be_fulfilled(services: Services, stages: Mapping[str, Stage]) -> None:
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            other = services[needed]
            if how["condition"] == "service_completed_successfully":
                assert other["restart"] == "no", f"{name} waits for the end of {needed}, which would never come"
            else:
                assert how["condition"] == "service_healthy"
                assert "test" in other["healthcheck"], f"{needed} cannot become healthy"


def test_web_and_worker_wait_for_everything_they_use(services: Services) -> None:
    for name in ("web", "worker", "worker-1"):
        assert set(services[name]["depends_on"]) == {"database", "valkey", "objects", "migrate", "bucket"}


def test_our_long_running_containers_keep_the_health_check_of_their_image(services: Services) -> None:
    for name in ("web", "worker", "worker-1"):
        assert "healthcheck" not in services[name]


def test_commands_of_our_images_are_programs_in_them(ours: Services, programs: set[str]) -> None:
    for service in ours.values():
        assert service.get("command", ["darkroom"])[0] in programs


def test_worker_is_killed_only_after_its_grace_has_passed(services: Services) -> None:
    for name in ("worker", "worker-1"):
        grace = float(services[name]["environment"]["DARKROOM_WORKER_GRACE_SECONDS"])
        assert float(services[name]["stop_grace_period"].removesuffix("s")) >= grace + 20


def test_each_worker_owns_a_gpu_of_its_own(services: Services) -> None:
    workers = {name: service for name, service in services.items() if service["image"] == "darkroom-worker"}
    devices = []
    for service in workers.values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert "count" not in device, "replicas and services with a count all get the same device"
        devices += device["device_ids"]
    assert len(set(devices)) == len(devices) == len(workers) == 2


def test_default_profile_asks_for_one_gpu(services: Services) -> None:
    assert "profiles" not in services["worker"]
    assert services["worker-1"]["profiles"] == ["two-gpus"]


def test_cpu_override_takes_the_gpu_away_and_nothing_else(root: Path, services: Services) -> None:
    text = (root / "docker/compose.cpu.yaml").read_text()
    override = _load(root / "docker/compose.cpu.yaml")["services"]
    assert set(override) == {"worker"} <= set(services)
    assert "devices: !reset []" in text, "without the tag, Compose appends the empty list and the GPU stays"
    assert override["worker"]["environment"] == {"DARKROOM_WORKER_DEVICE": "cpu"}


def test_images_of_others_are_pinned(services: Services) -> None:
    for service in services.values():
        if service["image"] not in OURS:
            assert re.search(r":\d+(\.\d+)*$", service["image"])


def test_volumes_and_networks_are_declared(compose: dict[str, Any], services: Services) -> None:
    for service in services.values():
        assert set(service["networks"]) <= set(compose["networks"])
        assert {volume.partition(":")[0] for volume in service.get("volumes", ())} <= set(compose["volumes"])


@contextmanager
def _running(command: list[str], environment: Mapping[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        leashed(command),
        env={**os.environ, **environment, **held_by(os.getpid())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait(10)


def test_object_server_makes_our_bucket_and_passes_its_health_check(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, bucket = fill_in(services["objects"]), fill_in(services["bucket"])
    port, rclone = free_port(), str(find_rclone())
    address = f"http://127.0.0.1:{port}"
    here = {":9000": f"127.0.0.1:{port}", "/data": str(tmp_path)}
    environment = {**service["environment"], "RCLONE_S3_ENDPOINT": address}
    health = [rclone, *service["healthcheck"]["test"][2:]]

    def is_healthy(**more: str) -> bool:
        return subprocess.run(health, env={**environment, **more}, capture_output=True, timeout=20).returncode == 0

    assert service["healthcheck"]["test"][:2] == ["CMD", "rclone"]
    assert not is_healthy()
    with _running([rclone, *(here.get(word, word) for word in service["command"])], environment):
        wait_until(is_healthy, seconds=20, refusal=lambda: "the object server")
        assert not is_healthy(RCLONE_S3_SECRET_ACCESS_KEY="wrong")
        for name, value in bucket["environment"].items():
            monkeypatch.setenv(name, value.replace("http://objects:9000", address))
        for _ in range(2):
            subprocess.run([sys.executable, *bucket["command"][1:]], check=True, timeout=60)
        Storage(load_settings()).check()


def test_valkey_takes_its_options_and_asks_for_the_password(services: Services, tmp_path: Path) -> None:
    service = fill_in(services["valkey"])
    program, *options = service["command"]
    port = free_port()
    assert program == "valkey-server"
    command = [str(find_valkey()), *options, "--port", str(port), "--dir", str(tmp_path), "--bind", "127.0.0.1"]
    assert service["environment"]["REDISCLI_AUTH"] == options[options.index("--requirepass") + 1] == "v0"

    def answers() -> bool:
        with redis.Redis(port=port, password="v0", socket_timeout=2) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    with _running(command, {}):
        wait_until(answers, seconds=20, refusal=lambda: "valkey")
        with redis.Redis(port=port, socket_timeout=2) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with redis.Redis(port=port, password="v0", decode_responses=True) as client:
            assert client.config_get("save", "appendonly") == {"save": "", "appendonly": "no"}
            assert client.config_get("maxmemory*")["maxmemory-policy"] == "noeviction"
