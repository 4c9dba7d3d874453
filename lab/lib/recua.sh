# Starting recua's processes in a scenario, and ending them. Each has a NAME: its standard output is
# $FOLDER/NAME.out, its log $FOLDER/NAME.err.

MODELS=/opt/lab/models
STORIES=$MODELS/stories260K.gguf
. /ctl/golden.sh # PROMPTS GREEDY (8 cases each) LONG_PROMPT LONG_GREEDY NLL (by context size)

# What a scenario may change before it starts processes.
TRANSPORT=(--transport rdma,tcp)   # Not shared memory, which topology one would prefer.
declare -A DEVICES=([a]=rxa [b]=rxb) # --rdma-device of processes at a letter; none: the flag is left out.
declare -A HOST=([a]=$IP_A [b]=$IP_B [n]=$IP_N)
MODEL=$STORIES
COMMON=(-t 1)                      # One emulated CPU: more threads only take turns.
AS_USER=root

declare -A PID=() ADDRESS=() BASELINE=()
WORKERS='' # What --workers gets; start_worker appends.
N_WORKERS=0

prepare_scenario() {
  mkdir -p /tmp/scenario
  cd /tmp/scenario
}

host_port() { # LETTER PORT
  if [[ "${HOST[$1]}" == *:* ]]; then echo "[${HOST[$1]}]:$2"; else echo "${HOST[$1]}:$2"; fi
}

# Puts into FLAGS what every process at LETTER is started with.
collect_flags() { # LETTER
  FLAGS=("${COMMON[@]}" ${TRANSPORT[@]+"${TRANSPORT[@]}"})
  if [[ -n "${DEVICES[$1]:-}" ]]; then FLAGS+=(--rdma-device "${DEVICES[$1]}"); fi
}

# In the background at LETTER, as AS_USER, with no memlock limit unless MEMLOCK_KIB is set.
start_process() { # NAME LETTER PROGRAM ARGUMENTS...
  local name=$1 prefix=()
  step "start $name at $2"
  if [[ "$2" == n ]]; then prefix=(ip netns exec box); fi
  if [[ "$AS_USER" != root ]]; then prefix+=(env HOME=/tmp chroot --userspec="$AS_USER" --skip-chdir /); fi
  shift 2
  printf '%q ' "$@" >"$FOLDER/$name.command"
  : >"$FOLDER/$name.err" # So that nobody looks at an earlier process' log.
  (
    ulimit -l "${MEMLOCK_KIB:-unlimited}"
    exec ${prefix[@]+"${prefix[@]}"} "$@"
  ) </dev/null >"$FOLDER/$name.out" 2>"$FOLDER/$name.err" &
  PID[$name]=$!
}

# A worker at LETTER's address, with MODELS unless MODELS_OF_WORKERS is set (empty: none).
# Does not wait for it.
launch_worker() { # NAME LETTER [FLAGS...]
  local name=$1 end=$2 models=${MODELS_OF_WORKERS-$MODELS}
  shift 2
  collect_flags "$end"
  if [[ -n "$models" ]]; then FLAGS+=(--models "$models"); fi
  ADDRESS[$name]=$(host_port "$end" $((7500 + N_WORKERS)))
  N_WORKERS=$((N_WORKERS + 1))
  rm -rf "cache-$name"
  mkdir -m 777 "cache-$name"
  start_process "$name" "$end" recua worker --listen "${ADDRESS[$name]}" --cache-dir "$PWD/cache-$name" \
    "${FLAGS[@]}" "$@"
  WORKERS=${WORKERS:+$WORKERS,}${ADDRESS[$name]}
}

# Returns once it accepts connections; remembers what it holds then.
wait_for_worker() { # NAME
  wait_for_log "$1" 'listening on'
  step "$1 listens"
  count_held "$1"
  BASELINE[$1]=$HELD
}

start_worker() { # NAME LETTER [FLAGS...]
  launch_worker "$@"
  wait_for_worker "$1"
}

# The usual pair: w1 on a, w2 on b. With the coordinator on b, both hops between workers' machines
# cross the link: coordinator (b) -> w1 (a) -> w2 (b).
start_workers() { # [FLAGS...]
  launch_worker w1 a "$@"
  launch_worker w2 b "$@"
  wait_for_worker w1
  wait_for_worker w2
}

# `recua SUBCOMMAND` as the coordinator at LETTER, in the background.
start_coordinator() { # NAME LETTER SUBCOMMAND [FLAGS...]
  local name=$1 end=$2 subcommand=$3
  shift 3
  collect_flags "$end"
  # All of them, however small the model is.
  if [[ "$subcommand" != plan && "$WORKERS" == *,* && " $* " != *' --tp '* && " $* " != *' --plan '* ]]; then
    FLAGS+=(--plan layers)
  fi
  start_process "$name" "$end" recua "$subcommand" -v -m "$MODEL" -ctk f32 -ctv f32 --workers "$WORKERS" \
    "${FLAGS[@]}" "$@"
}

# The same without workers, to compare with.
start_local() { # NAME SUBCOMMAND [FLAGS...]
  start_process "$1" a recua "$2" -m "$MODEL" -ctk f32 -ctv f32 "${COMMON[@]}" "${@:3}"
}

GREEDY_FLAGS=(--json --temp 0 --ignore-eos)

# A generation with known tokens, in the background: CASE is 0 to 7 (100 tokens), or "long" (480).
start_run() { # NAME LETTER CASE [N] [FLAGS...]
  local name=$1 end=$2 case=$3 n=${4:-100} prompt
  shift $(($# < 4 ? $# : 4))
  if [[ "$case" == long ]]; then prompt=$LONG_PROMPT; else prompt=${PROMPTS[$case]}; fi
  CASE[$name]=$case N_TOKENS[$name]=$n
  start_coordinator "$name" "$end" run "${GREEDY_FLAGS[@]}" --prompt-ids "$prompt" -n "$n" "$@"
}
declare -A CASE=() N_TOKENS=() CODE=()

# Waits for a process to end by itself.
wait_for_exit() { # NAME
  local code=0
  wait "${PID[$1]}" || code=$?
  CODE[$1]=$code
  step "$1 exited with $code"
  unset "PID[$1]"
}

# start_run, and its end with the right tokens.
run_model() { # NAME LETTER CASE [N] [FLAGS...]
  start_run "$@"
  wait_for_exit "$1"
  expect_tokens "$1"
}

is_running() { [[ -n "${PID[$1]:-}" ]] && kill -0 "${PID[$1]}" 2>/dev/null; }

stop_worker() { # NAME: asked to end, it must do so cleanly.
  kill -TERM "${PID[$1]}"
  wait_for_exit "$1"
  expect_exit "$1" 0
}

kill_process() { # NAME: as if its power was cut.
  kill -KILL "${PID[$1]}"
  wait "${PID[$1]}" 2>/dev/null || true
  unset "PID[$1]"
}

stop_everything() {
  local name
  stop_captures
  for name in "${!PID[@]}"; do kill -KILL "${PID[$name]}" 2>/dev/null || true; done
  wait 2>/dev/null || true
}

# --- waiting ---------------------------------------------------------------------------------------

# Whether NAME's log has at least N lines (default 1) like that.
has_lines() { # NAME REGEX [N]
  local line n=0
  while read -r line; do
    if [[ "$line" =~ $2 ]]; then n=$((n + 1)); fi
  done <"$FOLDER/$1.err"
  ((n >= ${3:-1}))
}

# Waits until NAME has logged it (N times), and fails at once when NAME ends before it did.
wait_for_log() { # NAME REGEX [N]
  has_lines_or_ended() { has_lines "$@" || ! is_running "$1"; }
  wait_until "$1 logs \"$2\"" has_lines_or_ended "$1" "$2" "${3:-1}"
  has_lines "$1" "$2" "${3:-1}" || fail "$1 ended before it logged \"$2\""
}

# Waits until LETTER has sent N packets since `mark_traffic LETTER`, while NAME still runs: a way to
# be in the middle of decoding.
mark_traffic() {
  read_counter "$1" sent_pkts
  MARK=$COUNTER
}
wait_for_traffic() { # LETTER N NAME
  sent_or_ended() {
    read_counter "$1" sent_pkts
    ((COUNTER - MARK >= $2)) || ! is_running "$3"
  }
  wait_until "$2 packets from $1" sent_or_ended "$@"
  is_running "$3" || fail "$3 ended before $1 had sent $2 packets"
}

# --- two machines ----------------------------------------------------------------------------------

on() { [[ "$LAB_NODE" == "$1" ]]; }

# Returns once both machines have called it with this name.
barrier() {
  local peer=a
  if on a; then peer=b; fi
  : >"/sync/$SCENARIO.$1.$LAB_NODE"
  wait_until "machine $peer reaches \"$1\"" test -e "/sync/$SCENARIO.$1.$peer"
}
