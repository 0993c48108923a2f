#!/usr/bin/env bash
# Runs fuzz targets for a number of executions each, several at a time, and prints a table for benches/RESULTS.md.
#
#   fuzz/run.sh [-n EXECUTIONS] [-j JOBS] [-s SECONDS] [-d DIR] [-a address|none] [-b] [TARGET...]
#
# Without targets: all. -s ends a target after so many seconds, however few its executions. -d holds the build, the
# grown corpora, logs and failing inputs (default: fuzz/target). -b takes the binaries that are there. -a chooses
# AddressSanitizer (default) or none; what one input may allocate is limited in both. The process may grow: tokenizers
# leave about 2 KB behind each. The exit status is 1 if a target failed.
#
# Needs cargo-fuzz; works with a stable compiler.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

executions=1000000 jobs=$(nproc) seconds=0 out=$here/target sanitizer=address build=yes
while getopts n:j:s:d:a:b option; do
    case $option in
    n) executions=$OPTARG ;;
    j) jobs=$OPTARG ;;
    s) seconds=$OPTARG ;;
    d) mkdir -p "$OPTARG" && out=$(cd "$OPTARG" && pwd) ;;
    a) sanitizer=$OPTARG ;;
    b) build=no ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    for file in "$here"/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

if [ $build = yes ]; then
    for target in "${targets[@]}"; do
        RUSTC_BOOTSTRAP=1 nice cargo fuzz build --fuzz-dir "$here" --target-dir "$out" --sanitizer "$sanitizer" "$target"
    done
fi

# Inputs become files, fastest in memory.
scratch=$(mktemp -d -p "$([ -d /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")" animatelcm-fuzz-XXXXXX)
trap 'rm -rf "$scratch"' EXIT

run() {
    target=$1
    work=$out/run/$target
    rm -rf "$work/log" "$scratch/$target"
    mkdir -p "$work/corpus" "$work/failed" "$scratch/$target"
    options=(-runs="$executions" -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=4096
        -malloc_limit_mb=600 -print_final_stats=1 -artifact_prefix="$work/failed/")
    if [ -f "$here/dict/$target.dict" ]; then options+=(-dict="$here/dict/$target.dict"); fi
    export TMPDIR=$scratch/$target MALLOC_ARENA_MAX=2 RAYON_NUM_THREADS=1 RUST_BACKTRACE=0
    export ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=16:allocator_may_return_null=1
    binary=$(echo "$out"/*/release/"$target")
    nice -n 10 "$binary" "${options[@]}" "$work/corpus" "$here/corpus/$target" >"$work/log" 2>&1 &&
        echo ok >"$work/result" || echo failed >"$work/result"
    rm -rf "${scratch:?}/$target"
    echo "$target: $(cat "$work/result")" >&2
}
export -f run
export out here scratch executions seconds
printf '%s\n' "${targets[@]}" | xargs -P "$jobs" -I{} bash -c 'run {}'

# A figure of libFuzzer's statistics.
figure() { grep -a "^stat::$2:" "$out/run/$1/log" | tail -1 | awk '{print $2}' || true; }

echo "| Target | Executions | A second | Edges | Slowest, s | Heap of one input below, MiB | Peak RSS, MiB | Panics caught | Result |"
echo "|---|---|---|---|---|---|---|---|---|"
status=0
for target in "${targets[@]}"; do
    log=$out/run/$target/log
    edges=$(grep -ao ' cov: [0-9]*' "$log" | tail -1 | awk '{print $2}' || true)
    heap=$(grep -ao '^largest heap of an execution: [0-9]*' "$log" | tail -1 | awk '{print int($6 / 1024) + 1}' || true)
    panics=$(grep -ac '^panicked at' "$log" || true)
    result=$(cat "$out/run/$target/result")
    if [ "$result" != ok ]; then
        status=1
        result="$result: $(grep -ao 'Test unit written to .*' "$log" | tail -1 | sed 's|.*/||' || true)"
    fi
    echo "| \`$target\` | $(figure "$target" number_of_executed_units) | $(figure "$target" average_exec_per_sec)" \
        "| ${edges:-0} | $(figure "$target" slowest_unit_time_sec) | ${heap:-1} | $(figure "$target" peak_rss_mb)" \
        "| $panics | $result |"
done
exit $status
