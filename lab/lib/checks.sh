# What scenarios expect. Each check fails the scenario with a line that says what was there instead.

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

json_ids() { grep -o '"ids":\[[0-9,]*\]' "$FOLDER/$1.out" | tr -cd '0-9,'; } # NAME

# The run ended well, with the tokens of the float64 reference.
expect_tokens() { # NAME
  local name=$1 wanted
  expect_exit "$name" 0
  if [[ "${CASE[$name]}" == long ]]; then wanted=$LONG_GREEDY; else wanted=${GREEDY[${CASE[$name]}]}; fi
  wanted=$(cut -d, -f"1-${N_TOKENS[$name]}" <<<"$wanted")
  [[ "$(json_ids "$name")" == "$wanted" ]] || fail "$name has other tokens: $(json_ids "$name"), not $wanted"
}

# What --logprobs printed is the same, to the last digit.
expect_same_logprobs() { # NAME OTHER
  local one other
  one=$(grep -o '"logprobs":.*,"timings"' "$FOLDER/$1.out") || fail "$1 has no logprobs"
  other=$(grep -o '"logprobs":.*,"timings"' "$FOLDER/$2.out") || fail "$2 has no logprobs"
  [[ "$one" == "$other" ]] || fail "the log-probabilities of $1 and $2 differ"
}

expect_exit() { # NAME CODE
  [[ "${CODE[$1]}" == "$2" ]] || fail "$1 exited with ${CODE[$1]}, not $2"
}

# One line of NAME's log has all the words, whatever their case.
expect_message() { # NAME WORDS...
  local name=$1 found word
  shift
  found=$(cat "$FOLDER/$name.err")
  for word in "$@"; do
    found=$(grep -iF -- "$word" <<<"$found") || fail "$name logs no line with all of: $*"
  done
}

# Each link of NAME runs on what the regular expression says: `expect_links run 'rdma rxb/1'`.
expect_links() { # NAME REGEX [AT_LEAST]
  local lines
  lines=$(grep -E 'link .*->.*: ' "$FOLDER/$1.err") || fail "$1 logs no link"
  (($(grep -cE "link .*->.*: $2" <<<"$lines") >= ${3:-1})) || fail "$1 has no ${3:-1} links with \"$2\" but: $lines"
}
expect_no_links() { # NAME REGEX
  ! has_lines "$1" "link .*->.*: $2" || fail "$1 has a link with \"$2\""
}

# NAME printed the same negative log-likelihood as OTHER, to the last digit.
expect_same_nll() { # NAME OTHER
  local one other
  one=$(grep -o '"nll":[0-9.]*' "$FOLDER/$1.out") || fail "$1 prints no nll"
  other=$(grep -o '"nll":[0-9.]*' "$FOLDER/$2.out") || fail "$2 prints no nll"
  [[ "$one" == "$other" ]] || fail "$1 has $one, $2 has $other"
}

# The reference's, which was computed in float64.
expect_nll() { # NAME VALUE
  grep -o '"nll":[0-9.]*' "$FOLDER/$1.out" | cut -d: -f2 |
    awk -v wanted="$2" '{exit !($1 - wanted < 0.002 && wanted - $1 < 0.002)}' || fail "$1 is not near $2"
}

expect_less() { # WHAT VALUE LIMIT
  (($2 < $3)) || fail "$1 is $2, not less than $3"
}

# netem really dropped something, else the scenario shows nothing. Let a few hundred packets pass before.
expect_drops() { # LETTER...
  local end n_dropped=0
  for end in "$@"; do
    n_dropped=$((n_dropped + $(tc -s qdisc show dev "v$end" | sed -n 's/.*dropped \([0-9]*\).*/\1/p' | head -n 1)))
  done
  ((n_dropped > 0)) || fail "netem dropped nothing"
}

# --- what is held ----------------------------------------------------------------------------------

# Puts into HELD the number of NAME's open descriptors.
count_held() { # NAME
  local descriptors=(/proc/"${PID[$1]}"/fd/*)
  HELD=${#descriptors[@]}
}
count_threads() { # NAME, into N_THREADS
  local threads=(/proc/"${PID[$1]}"/task/*)
  N_THREADS=${#threads[@]}
}

# A worker without sessions holds what it held when it had just started. The last session's things
# may take a moment after the coordinator's end.
expect_released() { # NAME
  released() {
    count_held "$1"
    [[ "$HELD" == "${BASELINE[$1]}" ]]
  }
  if ! wait_until "$1 has ${BASELINE[$1]} open descriptors again" released "$1"; then
    ls -l "/proc/${PID[$1]}/fd"
    fail "$1 has $HELD open descriptors, had ${BASELINE[$1]}"
  fi
}

# Queue pairs, regions and the like of all processes, as the kernel counts them: "rxa: pd 1 cq 1 ...".
expect_no_rdma_resources() {
  no_resources() { ! rdma resource show | grep -vqE 'pd 1 cq 1 qp 1 cm_id [0-9]+ mr 0 '; } # The kernel's own.
  wait_until "all queue pairs and regions are gone" no_resources || fail "left: $(rdma resource show)"
}

# At the end of every scenario: living workers hold nothing, and end cleanly when asked.
finish_scenario() {
  local name
  for name in "${!BASELINE[@]}"; do
    if [[ -z "${PID[$name]:-}" ]]; then continue; fi
    is_running "$name" || fail "$name died"
    expect_released "$name"
  done
  expect_no_rdma_resources
  for name in "${!BASELINE[@]}"; do
    if [[ -n "${PID[$name]:-}" ]]; then stop_worker "$name"; fi
  done
}

# Milliseconds of CPU time that a process has used; the kernel counts in hundredths of a second.
cpu_ms() { # NAME
  local fields
  read -r -a fields <"/proc/${PID[$1]}/stat"
  echo $(((fields[13] + fields[14]) * 10))
}

# --- packets ---------------------------------------------------------------------------------------

declare -A CAPTURE=()

# Writes what passes INTERFACE into $FOLDER/FILE.pcap; whole packets, else tshark calls them malformed.
start_capture() { # FILE INTERFACE FILTER...
  local file=$1 interface=$2
  shift 2
  tcpdump --immediate-mode -U -i "$interface" -w "$FOLDER/$file.pcap" "$@" 2>"$FOLDER/$file.tcpdump" &
  CAPTURE[$file]=$!
  wait_until "tcpdump listens on $interface" grep -q 'listening on' "$FOLDER/$file.tcpdump"
}

stop_captures() {
  local file
  for file in "${!CAPTURE[@]}"; do
    kill -INT "${CAPTURE[$file]}" 2>/dev/null || true
    wait "${CAPTURE[$file]}" 2>/dev/null || true
  done
  CAPTURE=()
}

# For the one who reads a failure: who still runs, what it waits in, what the kernel holds.
show_everything() {
  local name
  for name in "${!PID[@]}"; do
    echo "-- $name, pid ${PID[$name]}: $(cat "$FOLDER/$name.command")"
    grep -H . "/proc/${PID[$name]}"/task/*/wchan 2>/dev/null || true
  done
  rdma link
  rdma resource show qp
} >&2
