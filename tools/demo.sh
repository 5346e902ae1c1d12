#!/usr/bin/env bash
# From a corpus to generated text on one machine, in minutes on two cores: builds shards from the
# Python standard library's own sources, trains a small ARMD (progressive curriculum, then strided
# orders), evaluates it and decodes one, two and four streams. Run it again and it continues.
source "$(dirname "$0")/environment.sh"
export TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore

RUN=runs/demo
STDLIB="$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

step() { printf '\n== %s\n' "$1"; }

step "corpus: the Python standard library's sources, with a sentencepiece vocabulary of their own"
mkdir -p "$RUN/data"
if [ ! -f "$RUN/data/corpus_train.json" ]; then
    "$PYTHON" tools/preprocess.py --input "$STDLIB/*.py" "$STDLIB"/{asyncio,email,http,importlib,json,logging,multiprocessing,unittest,urllib,xml} \
        --output "$RUN/data/corpus" --tokenizer train:sentencepiece:2048 --workers 2 --split 0.96,0.04
fi

step "training: recipes/demo_cpu.yaml"
"$PYTHON" -m armd_scale.train recipes/demo_cpu.yaml

step "evaluation: held-out text, left to right and strided"
# strided:S scores what --streams S samples, strided-ar:S the exact chain rule over the same slots.
for order in l2r strided:2 strided:4 strided-ar:2 strided-ar:4; do
    "$PYTHON" tools/evaluate.py --checkpoint "$RUN" --data "$RUN/data/corpus_valid" --order "$order" --samples 64
done

step "generation: one, two and four streams"
for streams in 1 2 4; do
    "$PYTHON" tools/generate.py --checkpoint "$RUN" --prompt 'def ' --tokens 128 --streams "$streams" --temperature 0.8 --top-p 0.95 --seed 1
done
