"""The KubeRay files against the operator's own CRDs, and what no schema checks."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "cluster_configs" / "kuberay"
SCHEMAS = ROOT.parent / "shared" / "schemas" / "kuberay"
FILES = sorted(FOLDER.glob("*.yaml"))


def load(path: Path) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the CRDs are a megabyte each
    return yaml.load(path.read_text(encoding="utf-8"), loader)


def strict(schema: Any) -> Any:
    """Turn a CRD's schema into one that refuses unknown fields, as the API server does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
    is_object = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if is_object and "additionalProperties" not in schema and not open_ended:
        made["additionalProperties"] = False
    return made


@functools.cache
def crd_schema(kind: str) -> Any:
    path = SCHEMAS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip("the CRDs of KubeRay are not here (../shared/schemas/kuberay)")
    (version,) = [item for item in load(path)["spec"]["versions"] if item["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_operator_takes_it(path: Path) -> None:
    document = load(path)
    errors = Draft7Validator(crd_schema(document["kind"])).iter_errors(document)
    assert not [f"{'/'.join(map(str, error.path))}: {error.message[:200]}" for error in errors]


def test_the_check_finds_a_misspelt_field() -> None:
    document = load(FOLDER / "rayjob.yaml")
    document["spec"]["rayClusterSpec"]["workerGroupSpec"] = []
    errors = list(Draft7Validator(crd_schema("RayJob")).iter_errors(document))
    assert any("workerGroupSpec" in error.message for error in errors)


def cluster_of(path: Path) -> dict[str, Any]:
    spec = load(path)["spec"]
    return spec.get("rayClusterSpec", spec)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_authentication_is_on_and_nothing_is_exposed(path: Path) -> None:
    cluster = cluster_of(path)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "dreamshard-ray-token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "kubectl create secret generic dreamshard-ray-token" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_head_has_no_gpu_and_teachers_have(path: Path) -> None:
    cluster = cluster_of(path)
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in str(head["template"])
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    for group in (head, *groups.values()):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = pod["containers"][0]["volumeMounts"]
        assert {"mountPath": "/dev/shm", "name": "shm"} in mounts
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    for group in groups.values():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert int(limits["nvidia.com/gpu"]) >= 1 and group["minReplicas"] <= group["maxReplicas"]
    assert "teachers" in groups
