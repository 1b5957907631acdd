#!/usr/bin/env bash
# Install the packages that start.sh needs, and those in the arguments, on Debian or Ubuntu. Prints only errors.
set -euo pipefail

PACKAGES=(slurm-client slurmctld slurmd slurmdbd slurm-wlm-mysql-plugin munge mariadb-server mariadb-client
    iproute2 util-linux ffmpeg "$@")
POLICY=/usr/sbin/policy-rc.d

fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

is_installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Print the output only if the command fails.
quietly() {
    local output
    output=$("$@" 2>&1 </dev/null) || {
        printf '%s\n' "$output" >&2
        fail "'$*' failed; its output is above."
    }
}

# Keep the packages from starting their own munge, database and Slurm: the cluster starts its own. Debian calls this file
# before it starts a service, with or without systemd. An existing one stays.
forbid_services() {
    [ ! -e "$POLICY" ] || return 0
    trap 'rm -f "$POLICY"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
}

main() {
    [ "$(id -u)" = 0 ] || fail "Installing packages needs root: run this as root."
    command -v apt-get >/dev/null || fail "This installs Debian packages, and this machine is neither Debian nor Ubuntu."
    local package missing=()
    for package in "${PACKAGES[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    export DEBIAN_FRONTEND=noninteractive
    forbid_services
    quietly apt-get update
    quietly apt-get install --yes --no-install-recommends "${missing[@]}"
}

main
