#!/usr/bin/env bash
# Measure everything that only an accelerator shows, in order of value. Each part takes at most nine minutes;
# the same command again goes on with what is not finished, row by row in the parts that take longer. A part whose
# command has changed, such as by another PEERS_PYTHON, runs again.
#
#     bash benchmarks/on_gpu.sh runs/gpu              all parts
#     bash benchmarks/on_gpu.sh runs/gpu peers-sac    only these
#
# PEERS_PYTHON names an interpreter with the other trainers, EVORL and PUREJAXRL checkouts: see peers.py.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:?where to write results}
shift
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # several processes share the device
PYTHON=${PYTHON:-python}
SIZES=(1 4 16 64 256 1024)
DETERMINISTIC="--xla_gpu_deterministic_ops=true --xla_gpu_exclude_nondeterministic_ops=true"
PEERS=(--python "${PEERS_PYTHON:-$PYTHON}" ${EVORL:+--evorl "$EVORL"} --repeats 3 --limit 120)
PEERS+=(${PUREJAXRL:+--purejaxrl "$PUREJAXRL"})
PHYSICS=(gym/Hopper-v4 gym/Ant-v5 dmc/cheetah-run playground/CheetahRun)
mkdir -p "$OUT"

part() { # NAME COMMAND...: writes to $OUT/NAME.log, and leaves $OUT/NAME.done where the command succeeds
    local name=$1 code
    shift
    KNOWN+=("$name")
    [[ ${#WANTED[@]} -eq 0 || " ${WANTED[*]} " == *" $name "* ]] || return 0
    [[ -e $OUT/$name.done && $(<"$OUT/$name.done") == "$*" ]] && return 0
    echo "$(date +%T) $name"
    timeout --signal=INT --kill-after=20 540 "$@" >"$OUT/$name.log" 2>&1
    code=$?
    if [[ $code -eq 0 ]]; then
        echo "$*" >"$OUT/$name.done"
    else
        echo "$name ended with $code; see $OUT/$name.log, and run this again"
        FAILED=1
    fi
}

table() { # NAME TASK: goes on with a table of reproduce.py, which knows itself what is finished
    part "$1" "$PYTHON" benchmarks/reproduce.py "$1" --tasks "$2" --minutes 8 --runs "$OUT/runs" --out "$OUT/reproduce"
    rm -f "$OUT/$1.done"
}

WANTED=("$@")
KNOWN=()
FAILED=0
part tests env JAX_PLATFORMS=cuda "$PYTHON" -m pytest -q -m gpu
part peers-sac "$PYTHON" benchmarks/peers.py "${PEERS[@]}" --algorithms sac --populations "${SIZES[@]}" --out "$OUT/peers-sac.json"
part peers-ppo "$PYTHON" benchmarks/peers.py "${PEERS[@]}" --algorithms ppo --populations "${SIZES[@]}" --out "$OUT/peers-ppo.json"
part peers-td3 "$PYTHON" benchmarks/peers.py "${PEERS[@]}" --algorithms td3 --populations "${SIZES[@]}" --out "$OUT/peers-td3.json"
part peers-es "$PYTHON" benchmarks/peers.py "${PEERS[@]}" --peers evosax --algorithms es --populations 32 256 1024 --out "$OUT/peers-es.json"
part peers-fastpbrl "$PYTHON" benchmarks/peers.py "${PEERS[@]}" --protocol fastpbrl --out "$OUT/peers-fastpbrl.json"
part peers-rejax "$PYTHON" benchmarks/peers.py "${PEERS[@]}" --protocol rejax --out "$OUT/peers-rejax.json"
part collaboration "$PYTHON" benchmarks/collaboration.py --populations 1 4 16 64 --out "$OUT/collaboration.json"
part throughput "$PYTHON" benchmarks/throughput.py --methods sac td3 ppo pderl ce --populations "${SIZES[@]}" --out "$OUT/throughput.json"
part throughput-others "$PYTHON" benchmarks/throughput.py --methods erl cem_rl es sunrise dice diayn pbt cspc --populations 16 --out "$OUT/throughput-others.json"
part throughput-games "$PYTHON" benchmarks/throughput.py --methods dqn a2c ca2e cdrl --env gymnax/Breakout-MinAtar --populations 16 --out "$OUT/throughput-games.json"
part deterministic env XLA_FLAGS="$DETERMINISTIC" "$PYTHON" benchmarks/throughput.py --methods sac ppo --populations 1 64 1024 --out "$OUT/throughput-deterministic.json"
part physics "$PYTHON" benchmarks/envs.py --task "${PHYSICS[@]}" brax/hopper --lanes 64 1024 4096 --limit 240 --out "$OUT/envs" --resume
part physics-warp "$PYTHON" benchmarks/envs.py --impl warp --task "${PHYSICS[@]}" --lanes 64 1024 4096 --limit 240 --out "$OUT/envs-warp" --resume
part pixels "$PYTHON" benchmarks/pixels.py --out "$OUT/pixels.json"
table ce-table1 pendulum-swingup
table chdrl-table1 Hopper
table cdrl-standin Asterix
for name in "${WANTED[@]}"; do
    [[ " ${KNOWN[*]} " == *" $name "* ]] || { echo "error: there is no part $name; there is ${KNOWN[*]}" >&2; exit 2; }
done
exit $FAILED
