#!/usr/bin/env bash
# A Docker engine for the tests where none runs and no image registry is reached: Debian's docker.io and docker-compose, plus
# a stand-in base image made by debootstrap: `localhost/python:3.11` (Debian 12, python3, venv, pip, this host's CAs).
# Build with:  docker build --network host --build-arg PYTHON_IMAGE=localhost/python:3.11 ...
# Root only. Safe to run again.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
command -v dockerd >/dev/null && command -v docker-compose >/dev/null && command -v debootstrap >/dev/null || {
  apt-get update -qq
  apt-get install -y -qq docker.io docker-compose debootstrap iptables >/dev/null
}
if ! docker info >/dev/null 2>&1; then
  setsid dockerd >/var/log/dockerd-tests.log 2>&1 < /dev/null &
  for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 0.5; done
  docker info >/dev/null
fi
if ! docker image inspect localhost/python:3.11 >/dev/null 2>&1; then
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$root" >/dev/null
  cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
  ln -sf python3 "$root/usr/bin/python"
  tar -C "$root" -c . | docker import \
    -c 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_BREAK_SYSTEM_PACKAGES=1' - localhost/python:3.11 >/dev/null
fi
docker image inspect localhost/python:3.11 --format 'ready: {{.RepoTags}}'
