#!/bin/sh
# What both recipes do with the checkout in /src: `install.sh gpu`, or `install.sh cpu`.
set -eu
case $1 in
gpu) # Triton, and so vLLM, compiles as it runs.
    apt-get update
    apt-get install --yes --no-install-recommends gcc libc6-dev
    rm -rf /var/lib/apt/lists/*
    ;;
cpu) # Before anything asks for torch, which would come with CUDA.
    pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
    ;;
*)
    echo "install.sh: gpu or cpu, not '$1'" >&2
    exit 2
    ;;
esac
pip install --no-cache-dir "/src[$1,train-4bit,server,report,parquet]" pypdfium2
rm -rf /src
