"""The Kubernetes manifests: they parse, hang together, name what exists, and ask for no privilege. No cluster."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from darkroom.config import load_settings

Manifest = dict[str, Any]


@pytest.fixture(scope="session")
def manifests(root: Path) -> list[Manifest]:
    files = sorted((root / "docker/kubernetes").glob("*.yaml"))
    return [each for file in files for each in yaml.safe_load_all(file.read_text())]


@pytest.fixture(scope="session")
def pods(manifests: list[Manifest]) -> dict[str, dict[str, Any]]:
    """The pod specification of each workload, by the name of its only container."""
    specs = [each["spec"]["template"]["spec"] for each in manifests if "template" in each.get("spec", {})]
    assert all(len(spec["containers"]) == 1 for spec in specs)
    return {spec["containers"][0]["name"]: spec for spec in specs}


def _container(pod: Mapping[str, Any]) -> dict[str, Any]:
    only: dict[str, Any] = pod["containers"][0]
    return only


def test_every_kind_is_there_once(manifests: list[Manifest]) -> None:
    kinds = sorted((each["kind"], each["metadata"]["name"]) for each in manifests)
    assert kinds == [
        ("ConfigMap", "darkroom"),
        ("Deployment", "darkroom-web"),
        ("Deployment", "darkroom-worker"),
        ("Job", "darkroom-migrate"),
        ("Service", "darkroom-web"),
    ]


def test_pods_run_as_the_user_of_the_images_and_without_privileges(pods: dict[str, Any]) -> None:
    for pod in pods.values():
        assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10001)
        assert pod["automountServiceAccountToken"] is False
        context = _container(pod)["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_environment_names_are_known_and_their_values_pass(
    manifests: list[Manifest], pods: dict[str, Any], known_names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (shared,) = (each["data"] for each in manifests if each["kind"] == "ConfigMap")
    own = {each["name"]: each["value"] for pod in pods.values() for each in _container(pod).get("env", ())}
    for name, value in {**shared, **own}.items():
        assert name in known_names
        monkeypatch.setenv(name, value)
    load_settings()


def test_kubernetes_adds_no_names_of_its_own_to_the_environment(pods: dict[str, Any]) -> None:
    assert all(pod["enableServiceLinks"] is False for pod in pods.values())


def test_every_pod_reads_the_shared_settings_and_the_secret(pods: dict[str, Any]) -> None:
    for pod in pods.values():
        assert _container(pod)["envFrom"] == [
            {"configMapRef": {"name": "darkroom"}},
            {"secretRef": {"name": "darkroom"}},
        ]


def test_names_of_the_secret_in_the_readme_are_known(root: Path, known_names: set[str]) -> None:
    names = re.findall(r"--from-literal=(\w+)=", (root / "docker/README.md").read_text())
    assert {"DATABASE_URL", "REDIS_URL", "S3_ENDPOINT_URL", "SECRET_KEY"} <= set(names) <= known_names


def test_images_are_stages_of_the_dockerfile(pods: dict[str, Any], stages: Mapping[str, object]) -> None:
    assert {_container(pod)["image"] for pod in pods.values()} == {"darkroom-web", "darkroom-worker"}
    assert {"web", "worker"} <= set(stages)


def test_commands_and_probes_are_programs_of_the_images(pods: dict[str, Any], programs: set[str]) -> None:
    commands = [_container(pod)["args"] for pod in pods.values() if "args" in _container(pod)]
    probes = [probe for pod in pods.values() for name, probe in _container(pod).items() if name.endswith("Probe")]
    commands += [probe["exec"]["command"] for probe in probes if "exec" in probe]
    assert len(probes) == 5
    assert {command[0] for command in commands} == {"darkroom", "darkroom-worker"} <= programs


def test_web_is_probed_where_any_host_name_is_answered(pods: dict[str, Any]) -> None:
    container = _container(pods["web"])
    paths = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}


def test_service_finds_the_web_pods(manifests: list[Manifest]) -> None:
    (service,) = (each for each in manifests if each["kind"] == "Service")
    (web,) = (each for each in manifests if each["kind"] == "Deployment" and each["metadata"]["name"] == "darkroom-web")
    assert service["spec"]["selector"].items() <= web["spec"]["template"]["metadata"]["labels"].items()
    ports = {port["name"] for port in web["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_selectors_match_their_own_pods(manifests: list[Manifest]) -> None:
    for each in manifests:
        if each["kind"] == "Deployment":
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_worker_pod_owns_one_gpu_and_is_killed_only_after_its_grace(pods: dict[str, Any]) -> None:
    pod = pods["worker"]
    container = _container(pod)
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert pod["terminationGracePeriodSeconds"] >= float(environment["DARKROOM_WORKER_GRACE_SECONDS"]) + 20
    assert "lifecycle" not in container, "SIGTERM drains by itself"


def test_what_is_mounted_is_a_volume_of_the_pod(pods: dict[str, Any]) -> None:
    for pod in pods.values():
        mounts = {each["name"]: each["mountPath"] for each in _container(pod)["volumeMounts"]}
        assert set(mounts) == {each["name"] for each in pod["volumes"]}
        assert {"/tmp", "/var/lib/darkroom"} <= set(mounts.values())
