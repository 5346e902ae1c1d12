#!/usr/bin/env bash
# What does it cost to turn an AR model into one that generates several streams at once? Trains a
# small Llama with transformers, converts it and fine-tunes it on strided orders; for comparison,
# does the same with a learned query, which does not preserve the function, and trains from scratch.
# Two runs at a time, one core each; run it again to continue. Writes a table and a plot to runs/adapt.
source "$(dirname "$0")/environment.sh"
export TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore OMP_NUM_THREADS=1

RUN=runs/adapt
RECIPE=recipes/adapt_cpu.yaml
STDLIB="$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

step() { printf '\n== %s\n' "$1"; }
train() { "$PYTHON" -m armd_scale.train "$RECIPE" "$@"; }

convert() { # QUERY: writes a checkpoint, and its likelihoods before any training
    local folder="$RUN/converted-$1" order
    [ -d "$folder" ] || "$PYTHON" tools/convert_ar_to_armd.py --hf "$RUN/llama" --output "$folder" --query "$1" --two-stream-layers 3
    mkdir -p "$RUN/start"
    for order in l2r strided-ar:2 strided-ar:4 random; do
        [ -f "$RUN/start/$1-$order.json" ] || "$PYTHON" tools/evaluate.py --checkpoint "$folder" --data "$RUN/data/bytes_valid" \
            --order "$order" --seq-length 256 --samples 48 --micro-batch 12 --json "$RUN/start/$1-$order.json"
    done
}

step "corpus: sources of the Python standard library, as bytes"
mkdir -p "$RUN/data"
"$PYTHON" tools/train_llama.py --tokenizer "$RUN/tokenizer"
if [ ! -f "$RUN/data/bytes_train.json" ]; then
    "$PYTHON" tools/preprocess.py --input "$STDLIB/*.py" "$STDLIB"/{asyncio,email,http,importlib,json,logging,multiprocessing,unittest,urllib,xml} \
        --output "$RUN/data/bytes" --tokenizer "$RUN/tokenizer" --workers 2 --split 0.96,0.04
fi

step "from scratch, in the background: strided orders only, more tokens than Llama and fine-tuning together"
train run.name=scratch run.folder="$RUN/scratch" model.init_from=null train.distillation=null train.steps=780 eval.every_steps=60 checkpoint.every_steps=260 \
    optim.lr=3e-3 optim.min_lr=3e-4 optim.warmup_steps=42 optim.schedule=cosine > "$RUN/scratch.log" 2>&1 &
scratch=$!
trap 'kill "$scratch" 2>/dev/null || true' EXIT

step "Llama: trained left to right"
[ -d "$RUN/llama" ] || "$PYTHON" tools/train_llama.py --tokenizer "$RUN/tokenizer" --recipe "$RECIPE" --output "$RUN/llama" --steps 600 --learning-rate 3e-3

step "conversion and strided fine-tuning: anchor query"
convert anchor
train

step "conversion and strided fine-tuning: learned query"
convert learned
train run.name=learned run.folder="$RUN/learned" model.query=learned model.init_from="$RUN/converted-learned" train.steps=360 eval.every_steps=30

step "from scratch: waiting for it to finish"
wait "$scratch" || { tail -n 3 "$RUN/scratch.log" >&2; exit 1; }

step "report"
"$PYTHON" tools/report_adaptation.py "$RUN"
