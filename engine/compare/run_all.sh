#!/bin/sh
# Everything that needs a GPU, in one command and under ten minutes: the self-test, decode steps of every
# size that fits, and PyTorch beside ours where python3 has torch and transformers. Writes all.json and
# all.log into the folder given.
#
#   engine/compare/run_all.sh BINARY FOLDER
#
# BINARY is `gpu_first` (cargo build --release -p engine --example gpu_first); it needs the NVIDIA driver and NVRTC,
# which KVLAB_NVRTC may point to (pip install nvidia-cuda-nvrtc, or torch's own).
set -u
binary=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
here=$(dirname "$(realpath "$0")")
log=$out/all.log
: >"$log"

if [ -z "${KVLAB_NVRTC:-}" ]; then
    KVLAB_NVRTC=$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0] + "/cu13/lib")' 2>/dev/null || true)
    export KVLAB_NVRTC
fi

# part NAME SECONDS COMMAND...: its JSON goes to NAME.json, its words to the log.
part() {
    name=$1 limit=$2
    shift 2
    echo "== $name ($(date +%T)): $*" >>"$log"
    timeout "$limit" "$@" >"$out/$name.json" 2>>"$log" || echo "== $name ended with $?" >>"$log"
}

nvidia-smi >>"$log" 2>&1
part test 150 "$binary" test
part 1b 40 "$binary" bench gemma3-1b 1,8,32 4096,32768
part 4b 40 "$binary" bench gemma3-4b 1,8,32 4096,32768
part 12b 50 "$binary" bench gemma3-12b 1,8,32 4096,32768
part 27b 60 "$binary" bench gemma3-27b 1,8,32 4096,32768
if python3 -c 'import torch, transformers' 2>>"$log"; then
    echo "== transformers ($(date +%T))" >>"$log"
    timeout 240 python3 "$here/hf_gemma3.py" --models gemma3-1b,gemma3-4b,gemma3-12b --batch 1,8,32 --context 4096 \
        --ours "$binary bench" --json "$out/transformers.json" >>"$log" 2>&1 || echo "== transformers ended with $?" >>"$log"
else
    echo "== python3 has no torch and transformers: nothing to compare with" >>"$log"
fi

# One JSON: {"test": ..., "1b": ..., ...}, null for what did not finish.
{
    printf '{'
    comma=
    for name in test 1b 4b 12b 27b transformers; do
        printf '%s"%s": ' "$comma" "$name"
        if [ -s "$out/$name.json" ]; then cat "$out/$name.json"; else printf null; fi
        comma=', '
    done
    printf '}\n'
} >"$out/all.json"
cat "$log"
