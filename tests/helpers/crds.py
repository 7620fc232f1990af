"""The schemas of the custom resources that the manifests use.

`tests/reference/crds.json` has the parts of the schemas that the manifests use:
whatever else a manifest names is an error until these are taken anew, by

    python -m tests.helpers.crds FOLDER MANIFEST...

where FOLDER/OWNER/NAME are checkouts of the repositories of `SOURCES`.
Templates of pods are left to `kubernetes_validate`.
"""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

SCHEMAS = Path(__file__).parents[1] / "reference/crds.json"
# By kind: repository, version and file.
SOURCES = {
    "JobSet": (
        "kubernetes-sigs/jobset",
        "v0.12.0",
        "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml",
    ),
    "TFJob": (
        "kubeflow/training-operator",
        "v1.9.0",
        "manifests/base/crds/kubeflow.org_tfjobs.yaml",
    ),
    "TrainingRuntime": (
        "kubeflow/trainer",
        "v2.3.0",
        "manifests/base/crds/trainer.kubeflow.org_trainingruntimes.yaml",
    ),
    "TrainJob": (
        "kubeflow/trainer",
        "v2.3.0",
        "manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml",
    ),
    "RayJob": (
        "ray-project/kuberay",
        "v1.6.2",
        "ray-operator/config/crd/bases/ray.io_rayjobs.yaml",
    ),
    "InferenceService": (
        "kserve/kserve",
        "v0.20.0",
        "config/crd/full/serving.kserve.io_inferenceservices.yaml",
    ),
}
KEPT = ("type", "required", "enum", "minimum", "maximum", "pattern", "format")


def used(schema, values):
    """The part of a schema that some values use; nothing more is allowed."""
    part = {key: schema[key] for key in KEPT if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        part["type"] = ["integer", "string"]
    objects = [value for value in values if isinstance(value, dict)]
    if "properties" in schema:
        part["additionalProperties"] = False
        part["properties"] = {
            name: {"type": "object"}
            if is_template_of_pods(inner)
            else used(inner, [v[name] for v in objects if name in v])
            for name, inner in schema["properties"].items()
            if any(name in value for value in objects)
        }
    elif isinstance(schema.get("additionalProperties"), dict):
        inner = [item for value in objects for item in value.values()]
        part["additionalProperties"] = used(
            schema["additionalProperties"], inner
        )
    if "items" in schema:
        items = [i for value in values for i in value]
        part["items"] = used(schema["items"], items)
    return part


def is_template_of_pods(schema):
    spec = schema.get("properties", {}).get("spec", {}).get("properties", {})
    return "containers" in spec


def pod_templates(value):
    """The templates of pods in a manifest, however deep."""
    if isinstance(value, list):
        return [found for item in value for found in pod_templates(item)]
    if not isinstance(value, dict):
        return []
    template = value.get("template")
    if isinstance(template, dict) and "containers" in template.get("spec", {}):
        return [template]
    return pod_templates([*value.values()])


def check(manifest):
    """Checks a custom resource, and the templates of its pods.

    Raises:
        jsonschema.ValidationError, kubernetes_validate.ValidationError: the
            manifest names something unknown, or has a wrong type.
    """
    schema = json.loads(SCHEMAS.read_text())[manifest["kind"]]
    jsonschema.validate(manifest, schema)
    for template in pod_templates(manifest["spec"]):
        kubernetes_validate.validate(
            {
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": {"name": "pod"},
                "template": template,
            },
            "1.37",
            strict=True,
        )


def main(folder, *manifests):
    documents = [
        document
        for path in manifests
        for document in yaml.safe_load_all(Path(path).read_text())
    ]
    schemas = {}
    for kind, (repository, version, path) in SOURCES.items():
        text = subprocess.run(
            [
                "git",
                "-C",
                Path(folder) / repository,
                "show",
                f"{version}:{path}",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found = [d for d in documents if d["kind"] == kind]
        (schema,) = (
            served["schema"]["openAPIV3Schema"]
            for served in yaml.safe_load(text)["spec"]["versions"]
            if served["name"] == found[0]["apiVersion"].partition("/")[2]
        )
        schema["properties"]["metadata"] = {"type": "object"}
        schemas[kind] = used(schema, found)
    SCHEMAS.write_text(json.dumps(schemas, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
