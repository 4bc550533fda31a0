#!/bin/sh
# Everything that needs a GPU, in one command and under ten minutes: the self-test, decode steps, prompts and moves of
# every size that fits, policies under memory pressure and with room to spare on the engine beside the simulator, and
# PyTorch beside ours where python3 has torch and transformers. Writes all.json and all.log into the folder given.
#
#   run_all.sh KVLAB FOLDER [SECONDS]
#
# KVLAB is the program (cargo build --release); it needs the NVIDIA driver and nothing else. With cuBLASLt, in the folder
# that KVLAB_NVRTC names, prompts are computed by it, too. Every part has a limit, and all together have SECONDS
# (580, unless told otherwise): what is left of them when a part begins limits it, too.
set -u
case ${3:-580} in *[!0-9]*) set -- ;; esac
if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "usage: run_all.sh KVLAB FOLDER [SECONDS]" >&2
    exit 2
fi
if [ ! -f "$1" ] || [ ! -x "$1" ]; then
    echo "run_all.sh: $1 is no program: expected the path of kvlab (cargo build --release makes target/release/kvlab)" >&2
    exit 2
fi
mkdir -p "$2" || exit 2
kvlab=$(realpath "$1")
out=$(realpath "$2")
here=$(dirname "$(realpath "$0")")
log=$out/all.log
parts="selftest 1b 4b 12b 27b 1b-q4_0 27b-q4_0 1b-plain 1b-late validate validate-light transformers"
# A part that is killed has this long to end.
grace=3
end=$(($(date +%s) + ${3:-580} - grace))
: >"$log" || exit 2
for name in $parts; do rm -f "$out/$name.json"; done

if [ -z "${KVLAB_NVRTC:-}" ]; then
    # Where pip puts cuBLASLt: torch brings it along.
    KVLAB_NVRTC=$(timeout 10 python3 -c 'import nvidia, os, glob
print(":".join(sorted(d for p in nvidia.__path__ for d in glob.glob(p + "/*/lib"))))' 2>/dev/null || true)
    export KVLAB_NVRTC
fi

# within SECONDS COMMAND...: its words go to the log; 124 or 137 where it took longer than that, or than what is left.
within() {
    limit=$1 left=$((end - $(date +%s)))
    shift
    [ "$left" -lt "$limit" ] && limit=$left
    [ "$limit" -gt 0 ] || return 124
    timeout -k "$grace" "$limit" "$@" >>"$log" 2>&1
}

# part NAME SECONDS COMMAND...: the same, and how it ended.
part() {
    name=$1 seconds=$2
    shift 2
    echo "== $name ($(date +%T)), at most $seconds s: $*" >>"$log"
    within "$seconds" "$@"
    echo "== $name ended with $? ($(date +%T))" >>"$log"
}

bench() {
    name=$1 seconds=$2
    shift 2
    part "$name" "$seconds" "$kvlab" engine bench --device cuda --json "$out/$name.json" --synthetic "$@"
}

# validation NAME SECONDS: of $out/NAME.toml; its tables become one JSON of texts.
validation() {
    rm -rf "$out/$1"
    part "$1" "$2" "$kvlab" validate "$out/$1.toml" --device cuda --synthetic gemma3-270m --repeats 3 --quiet --gate \
        --out "$out/$1"
    [ -s "$out/$1/validate.csv" ] && [ -s "$out/$1/errors.csv" ] || return 0
    {
        printf '{"validate": '
        json_lines "$out/$1/validate.csv"
        printf ', "errors": '
        json_lines "$out/$1/errors.csv"
        printf '}'
    } >"$out/$1.json"
}

# The lines of a file as a JSON array of texts.
json_lines() {
    sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/	/\\t/g' -e 's/^/"/' -e 's/$/"/' -e '$!s/$/,/' -e '1s/^/[/' -e '$s/$/]/' "$1"
}

# One JSON: {"selftest": ..., "1b": ..., ...}, null for what did not finish; then the log.
finish() {
    {
        printf '{'
        comma=
        for name in $parts; do
            printf '%s"%s": ' "$comma" "$name"
            if [ -s "$out/$name.json" ]; then cat "$out/$name.json"; else printf null; fi
            comma=', '
        done
        printf '}\n'
    } >"$out/all.json"
    cat "$log"
    exit "$1"
}

within 10 nvidia-smi
within 60 "$kvlab" engine bench --device cuda --synthetic gemma3-tiny --context 64 --prefill 16 --moves 64
code=$?
if [ $code -ne 0 ]; then
    echo "== kvlab computes nothing on a GPU here: it ended with $code" >>"$log"
    finish 1
fi
part selftest 120 "$kvlab" engine selftest --json "$out/selftest.json"
bench 1b 25 gemma3-1b
bench 4b 25 gemma3-4b
bench 12b 40 gemma3-12b
bench 27b 55 gemma3-27b
bench 1b-q4_0 20 gemma3-1b --weights q4_0 --kv q8_0
bench 27b-q4_0 40 gemma3-27b --weights q4_0 --kv q8_0
bench 1b-plain 15 gemma3-1b --without graphs,early,library --batch 1,8 --context 4096
bench 1b-late 15 gemma3-1b --without early --batch 1,8 --context 4096

# More chats at once than the cache can hold, so that policies differ; and one or two at a time.
workload() {
    cat <<END
title = "$1"
question = "$2"
generate = "azure-chat"
requests = "$3"
rate = "$4"
policies = [$5]
scheduler = "continuous"
kv_cache_type = "f16"
num_ctx = "2048"
num_parallel = "8"
num_batch = "512"
memory = "$6"
reload_s = "0.5"
END
}
workload "Policies on a full cache of a GPU" "Does the simulator rank policies as the GPU does?" 24 100 \
    '"paged:16", "paged:16+swap", "contiguous:run", "defrag", "shift", "ollama-0.6.6"' 'local=5120;global=6144' >"$out/validate.toml"
workload "A GPU with room to spare" "Does the simulator say how long steps take when nothing else matters?" 40 2 \
    '"paged:16", "defrag"' 'local=8192;global=16384' >"$out/validate-light.toml"
validation validate 90
validation validate-light 40
# What is left of the time goes to PyTorch, from small models to large ones; its rows are those that it came to.
if within 60 python3 -c 'import torch, transformers'; then
    part transformers 580 python3 "$here/hf_gemma3.py" --models gemma3-1b,gemma3-4b,gemma3-12b,gemma3-27b --batch 1,32 \
        --context 4096 --ours "$kvlab" --json "$out/transformers.json"
else
    echo "== python3 has no torch and transformers: nothing to compare with" >>"$log"
fi
finish 0
