"""The manifests of `deploy/kubernetes` against the schemas of Kubernetes itself.

python -m tests.deploy.manifests     needs kubectl, and: pip install kubernetes-validate
"""

import subprocess
import sys
from importlib import import_module

import yaml

from .files import DEPLOY

FOLDERS = ("server", "client", "server-with-metrics")


def kinds_of(folder: str) -> list[str]:
    """What kustomize makes of a folder, each accepted; raises what a schema objects to."""
    schemas = import_module("kubernetes_validate")
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes" / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    kinds = []
    for manifest in yaml.safe_load_all(done.stdout):
        schemas.validate(manifest, schemas.latest_version(), strict=True)
        kinds.append(manifest["kind"])
    return kinds


def main() -> int:
    for folder in FOLDERS:
        kinds = kinds_of(folder)
        print(f"{folder}: {', '.join(kinds)}")
        if not {"Deployment", "ConfigMap"} <= set(kinds):
            print(f"{folder}: a Deployment or a ConfigMap is missing")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
