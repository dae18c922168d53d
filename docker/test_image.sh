#!/usr/bin/env bash
# Build the CPU image and prove it: it starts, answers its health check, and reconstructs a replayed scan.
#
#     docker/test_image.sh                 needs root, and buildah, podman, runc (and debootstrap where no registry can be reached)
#
# Environment: TARGET (cpu), PORT (19002), BASE (docker.io/library/debian:12-slim), SUITE (bookworm),
#              CA_BUNDLE: a certificate bundle to trust while building, for sites behind an inspecting proxy,
#              PIP_CONF: a pip.conf to build with, for sites with a package mirror.
set -euo pipefail
cd "$(dirname "$0")/.."
TARGET=${TARGET:-cpu} PORT=${PORT:-19002} BASE=${BASE:-docker.io/library/debian:12-slim} SUITE=${SUITE:-bookworm}
STORAGE=(--storage-driver vfs)
IMAGE=reconstream:$TARGET
WORK=$(mktemp -d)
NAME=reconstream-test-$$
PYTHON=${PYTHON:-.venv/bin/python}

run() { podman --runtime runc --cgroup-manager cgroupfs "${STORAGE[@]}" "$@"; }
cleanup() {
  run rm -f -t 2 "$NAME" >/dev/null 2>&1 || true
  rm -rf "$WORK"
}
trap cleanup EXIT
say() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; run logs "$NAME" 2>&1 | tail -30 >&2 || true; exit 1; }

for tool in buildah podman runc; do command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install buildah podman runc debootstrap" >&2; exit 2; }; done

if ! buildah "${STORAGE[@]}" inspect --type image "$BASE" >/dev/null 2>&1 && ! buildah "${STORAGE[@]}" pull -q "$BASE" >/dev/null 2>&1; then
  say "no registry within reach: making $BASE with debootstrap"
  debootstrap --variant=minbase "$SUITE" "$WORK/root" >"$WORK/debootstrap.log" 2>&1 || { tail -20 "$WORK/debootstrap.log"; exit 1; }
  # The image fetches packages from where this host does.
  if [ -f /etc/apt/sources.list.d/debian.sources ]; then
    rm -f "$WORK/root/etc/apt/sources.list"
    cp /etc/apt/sources.list.d/debian.sources "$WORK/root/etc/apt/sources.list.d/"
  fi
  rm -rf "$WORK"/root/var/cache/apt/archives/*.deb
  container=$(buildah "${STORAGE[@]}" from scratch)
  buildah "${STORAGE[@]}" copy -q "$container" "$WORK/root" /
  buildah "${STORAGE[@]}" commit -q --rm "$container" "$BASE" >/dev/null
fi

say "building $IMAGE"
options=()
[ -n "${CA_BUNDLE:-}" ] && options+=(--volume "$CA_BUNDLE:/run/site-ca.crt:ro" --build-arg PIP_CERT=/run/site-ca.crt)
[ -n "${PIP_CONF:-}" ] && options+=(--volume "$PIP_CONF:/etc/pip.conf:ro")
buildah "${STORAGE[@]}" bud --isolation chroot --network host --pull=never --layers --format docker \
  --build-arg BASE="$BASE" "${options[@]}" --target "$TARGET" -t "$IMAGE" . >"$WORK/build.log" 2>&1 || { tail -40 "$WORK/build.log"; exit 1; }
run images --format '{{.Repository}}:{{.Tag}} {{.Size}}' | grep "reconstream:$TARGET"

say "starting it"
run run -d --name "$NAME" --network host --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "$IMAGE" \
  serve --host 127.0.0.1 --port "$PORT" >/dev/null
user=$(run exec "$NAME" id -u)
[ "$user" != 0 ] || fail "the service runs as root"
for _ in $(seq 60); do
  run exec "$NAME" reconstream health --port "$PORT" >/dev/null 2>&1 && healthy=1 && break
  sleep 1
done
[ -n "${healthy:-}" ] || fail "the health check did not pass within a minute"
echo "healthy, uid $user"

say "replaying a scan into it"
"$PYTHON" scripts/simulate.py cartesian "$WORK/scan.h5"
"$PYTHON" -m service.cli replay "$WORK/scan.h5" -c cartesian_grappa.xml --port "$PORT" -o "$WORK/images.h5" --report "$WORK/report.json" \
  || fail "the replay failed"
"$PYTHON" - "$WORK/images.h5" <<'PY' || fail "the images are wrong"
import sys
import h5py
import numpy as np
with h5py.File(sys.argv[1]) as file:
    series = [group for run in file.values() for group in run.values()]
    pixels = np.concatenate([group["data"][()].ravel() for group in series])
assert pixels.size and np.isfinite(pixels.astype(float)).all() and pixels.max() > 0, "no image or an empty one"
print(f"{len(series)} series, {pixels.size} pixels, maximum {pixels.max()}")
PY

say "stopping it (SIGTERM drains)"
run stop -t 20 "$NAME" >/dev/null
code=$(run inspect --format '{{.State.ExitCode}}' "$NAME")
[ "$code" = 0 ] || fail "it left with exit code $code"
echo "PASSED: $IMAGE"
