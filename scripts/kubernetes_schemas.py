"""Writes the JSON schemas that kubeconform needs, so that charts are checked without a network.

    kubernetes_schemas.py OUT --versions 1.30 1.34 --crds FILE.yaml ...

OUT/v1.30.0/deployment-apps-v1.json  the strict schemas inside the kubernetes-validate package
OUT/crds/servicemonitor-monitoring-v1.json  from custom resource definitions

Both refuse unknown fields: a misspelt field is otherwise dropped silently by the API server.
"""

import argparse
import json
import pathlib

import kubernetes_validate
import yaml


def write_builtin(version, out):
    bundled = pathlib.Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    out.mkdir(parents=True)
    for path in (bundled / f"v{version}.0-local-strict").iterdir():
        # The package resolves references against a URL of its own; kubeconform, against the file.
        schema = json.loads(path.read_text().replace("/api/_definitions.json#", "_definitions.json#"))
        schema.pop("$id", None)
        (out / path.name).write_text(json.dumps(schema))


def strict(node):
    """A copy of an OpenAPI v3 schema as a JSON schema that refuses unknown fields."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: strict(value) for key, value in node.items()}
    if node.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def write_crds(path, out):
    out.mkdir(parents=True, exist_ok=True)
    for crd in yaml.safe_load_all(path.read_text()):
        spec = crd["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}  # a CRD leaves it empty
            group = spec["group"].split(".")[0]
            name = f"{spec['names']['kind'].lower()}-{group}-{version['name']}.json"
            (out / name).write_text(json.dumps(schema))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--versions", nargs="+", required=True)
    parser.add_argument("--crds", nargs="+", required=True, type=pathlib.Path)
    args = parser.parse_args()
    for version in args.versions:
        write_builtin(version, args.out / f"v{version}.0")
    for path in args.crds:
        write_crds(path, args.out / "crds")


if __name__ == "__main__":
    main()
