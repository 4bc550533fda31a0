#!/bin/sh
# Everything that needs a GPU, in one command and at most eleven minutes: the self-test, decode steps and prompts of every
# size that fits, policies under memory pressure on the engine beside the simulator, and PyTorch beside ours where
# python3 has torch and transformers. Writes all.json and all.log into the folder given.
#
#   run_all.sh KVLAB FOLDER
#
# KVLAB is the program (cargo build --release); it needs the NVIDIA driver and nothing else. With cuBLASLt, in the folder
# that KVLAB_NVRTC names, prompts are computed by it, too.
set -u
if [ $# -ne 2 ]; then
    echo "usage: run_all.sh KVLAB FOLDER" >&2
    exit 2
fi
kvlab=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
here=$(dirname "$(realpath "$0")")
log=$out/all.log
: >"$log"

if [ -z "${KVLAB_NVRTC:-}" ]; then
    # Where pip puts cuBLASLt: torch brings it along.
    KVLAB_NVRTC=$(python3 -c 'import nvidia, os, glob
print(":".join(sorted(d for p in nvidia.__path__ for d in glob.glob(p + "/*/lib"))))' 2>/dev/null || true)
    export KVLAB_NVRTC
fi

# part NAME SECONDS COMMAND...: its words go to the log, and so does how it ended.
part() {
    name=$1 limit=$2
    shift 2
    echo "== $name ($(date +%T)): $*" >>"$log"
    timeout "$limit" "$@" >>"$log" 2>&1
    echo "== $name ended with $? ($(date +%T))" >>"$log"
}

bench() {
    name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$kvlab" engine bench --device cuda --json "$out/$name.json" --synthetic "$@"
}

nvidia-smi >>"$log" 2>&1
if ! "$kvlab" engine bench --device cuda --synthetic gemma3-tiny --context 64 --prefill 16 >>"$log" 2>&1; then
    cat "$log"
    exit 1
fi
part selftest 120 "$kvlab" engine selftest --json "$out/selftest.json"
bench 1b 30 gemma3-1b
bench 4b 30 gemma3-4b
bench 12b 40 gemma3-12b
bench 27b 60 gemma3-27b
bench 1b-q4_0 20 gemma3-1b --weights q4_0 --kv q8_0
bench 27b-q4_0 40 gemma3-27b --weights q4_0 --kv q8_0
bench 1b-plain 20 gemma3-1b --without graphs,early,library --batch 1,8 --context 4096
bench 1b-late 20 gemma3-1b --without early --batch 1,8 --context 4096
# More chats at once than the cache can hold, so that policies differ.
cat >"$out/validate.toml" <<'END'
title = "Policies on a full cache of a GPU"
question = "Does the simulator rank policies as the GPU does?"
generate = "azure-chat"
requests = "24"
rate = "100"
policies = ["paged:16", "contiguous:run", "defrag", "shift", "ollama-0.6.6"]
scheduler = "continuous"
kv_cache_type = "f16"
num_ctx = "2048"
num_parallel = "8"
num_batch = "512"
memory = "local=5120;global=6144"
reload_s = "0.5"
END
part validate 100 "$kvlab" validate "$out/validate.toml" --device cuda --synthetic gemma3-270m --repeats 3 --quiet \
    --out "$out/validate"
if python3 -c 'import torch, transformers' 2>>"$log"; then
    part transformers 150 python3 "$here/hf_gemma3.py" --models gemma3-1b,gemma3-4b --batch 1,8,32 --context 4096 \
        --ours "$kvlab" --json "$out/transformers.json"
else
    echo "== python3 has no torch and transformers: nothing to compare with" >>"$log"
fi

# One JSON: {"selftest": ..., "1b": ..., ...}, null for what did not finish.
{
    printf '{'
    comma=
    for name in selftest 1b 4b 12b 27b 1b-q4_0 27b-q4_0 1b-plain 1b-late transformers; do
        printf '%s"%s": ' "$comma" "$name"
        if [ -s "$out/$name.json" ]; then cat "$out/$name.json"; else printf null; fi
        comma=', '
    done
    printf '}\n'
} >"$out/all.json"
cat "$log"
