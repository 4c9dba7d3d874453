# The machines' network: who has which interface, device and address, and how to break them.
#
# Node a has va (10.9.0.1, fd09::1) and the RDMA device rxa, node b has vb (10.9.0.2, fd09::2) and rxb.
# Topology one: both on one machine, va and vb are the ends of a veth pair. Topology two: one each.
# second_pair gives a also vc, rxc, 10.9.1.1, and b vd, rxd, 10.9.1.2. bare_box adds a node n without RDMA.

IP_A=10.9.0.1 IP_B=10.9.0.2 IP6_A=fd09::1 IP6_B=fd09::2
IP_N=10.9.2.2
RESOURCES=/sys/class/infiniband
NETWORK_CHANGED=''

nodes() { if [[ "$LAB_TOPOLOGY" == one ]]; then echo a b; else echo "$LAB_NODE"; fi; }

set_up_network() {
  local node scope interface
  hostname "node-$LAB_NODE"
  ip link set lo up
  if [[ "$LAB_TOPOLOGY" == one ]]; then
    # rxe works in the first network namespace only, so both ends of the pair stay in it. With
    # accept_local each end takes packets from an address of this same machine. rxe looks up routes
    # with the outgoing interface given, so its packets do cross the pair; TCP takes lo.
    for scope in all default; do
      echo 1 >/proc/sys/net/ipv4/conf/$scope/accept_local
      echo 0 >/proc/sys/net/ipv4/conf/$scope/rp_filter
    done
    ip link add va type veth peer name vb || return
  else
    for interface in /sys/class/net/e*; do ip link set "${interface##*/}" name "v$LAB_NODE" || return; done
  fi
  set_up_ends $(nodes)
}

# Brings up interfaces with their addresses and RDMA devices, and waits until they can be used.
set_up_ends() { # LETTER...
  local end
  for end in "$@"; do
    ip link set "v$end" up mtu "$LAB_MTU" || return
    add_addresses "$end" || return
    [[ -e $RESOURCES/rx$end ]] || rdma link add "rx$end" type rxe netdev "v$end" || return
  done
  for end in "$@"; do wait_until "rx$end is active and has its GIDs" is_usable "$end" || return; done
}

add_addresses() { # LETTER
  case $1 in
    a) ip addr replace 10.9.0.1/24 dev va && ip addr replace fd09::1/64 dev va nodad ;;
    b) ip addr replace 10.9.0.2/24 dev vb && ip addr replace fd09::2/64 dev vb nodad ;;
    c) ip addr replace 10.9.1.1/24 dev vc && ip addr replace fd09:1::1/64 dev vc nodad ;;
    d) ip addr replace 10.9.1.2/24 dev vd && ip addr replace fd09:1::2/64 dev vd nodad ;;
  esac
}

# Whether LETTER's device is active and has GIDs for both of its addresses.
is_usable() {
  local gid gids='' state
  read -r state 2>/dev/null <"$RESOURCES/rx$1/ports/1/state" || return
  for gid in "$RESOURCES/rx$1/ports/1/gids/"?; do
    read -r gid 2>/dev/null <"$gid" && gids+=" $gid"
  done
  [[ "$state" == *ACTIVE && "$gids" == *ffff:0a09* && "$gids" == *fd09* ]]
}

# Topology one: a second port on each side.
second_pair() {
  NETWORK_CHANGED=1
  ip link add vc type veth peer name vd
  set_up_ends c d
}

# Topology one: a box without RDMA devices, named n: a network namespace with 10.9.2.2. Devices are
# shown in all namespaces unless told otherwise, and that only while there are no others.
bare_box() {
  NETWORK_CHANGED=1
  rdma system set netns exclusive
  mkdir -p /run/netns
  ip netns add box
  ip link add vm type veth peer name vn netns box
  ip addr add 10.9.2.1/24 dev vm
  ip link set vm up
  ip -netns box addr add 10.9.2.2/24 dev vn
  ip -netns box link set vn up
  ip -netns box link set lo up
  ip -netns box route add default via 10.9.2.1
}

# Undoes whatever a scenario may have done to the network. Starting a program takes tens of
# milliseconds here, so nothing is done when nothing was changed.
reset_network() {
  local end
  if [[ -z "$NETWORK_CHANGED" ]]; then return; fi
  if [[ -e /sys/class/net/vc ]]; then
    for end in c d; do rdma link delete "rx$end" 2>/dev/null || true; done
    ip link delete vc
  fi
  if [[ -e /run/netns/box ]]; then
    ip link delete vm
    ip netns delete box
    rdma system set netns shared
  fi
  tc qdisc delete dev lo root 2>/dev/null || true
  for end in $(nodes); do
    tc qdisc delete dev "v$end" root 2>/dev/null || true
    ip addr flush dev "v$end" scope global
  done
  set_up_ends $(nodes)
}

# What happens to packets that leave LETTER, as tc-netem(8) names it: `netem a loss 1%`.
netem() {
  NETWORK_CHANGED=1
  tc qdisc replace dev "v$1" root netem limit 10000 "${@:2}"
}
# Topology one: TCP between a and b takes lo, so this is what it suffers from.
netem_tcp() {
  NETWORK_CHANGED=1
  tc qdisc replace dev lo root netem limit 10000 "$@"
}
no_netem() { tc qdisc delete dev "v$1" root; }

# A link that goes down loses its global IPv6 addresses, so they come back with it.
link_down() {
  NETWORK_CHANGED=1
  ip link set "v$1" down
}
link_up() {
  ip link set "v$1" up
  add_addresses "$1"
  wait_until "rx$1 is active and has its GIDs" is_usable "$1"
}

set_mtu() { # LETTER BYTES
  NETWORK_CHANGED=1
  ip link set "v$1" mtu "$2"
}
remove_device() { # LETTER
  NETWORK_CHANGED=1
  rdma link delete "rx$1"
}
ipv6_only() { # LETTER...
  local end
  NETWORK_CHANGED=1
  for end in "$@"; do ip -4 addr flush dev "v$end"; done
}

# Puts a counter of LETTER's device into COUNTER: `read_counter a sent_pkts`.
read_counter() { read -r COUNTER <"$RESOURCES/rx$1/ports/1/hw_counters/$2"; }

# A pause without starting a program: nothing ever comes from this pipe.
exec {NEVER}<> <(:)
pause() { read -r -t "$1" -u "$NEVER" || true; } # SECONDS

# The only way to wait here: for a condition, not for time. It fails after LAB_WAIT seconds.
wait_until() { # WHAT COMMAND...
  local what=$1 ends=$((SECONDS + ${LAB_WAIT:-30}))
  shift
  until "$@"; do
    if ((SECONDS > ends)); then
      echo "FAILED: waited ${LAB_WAIT:-30} s for: $what" >&2
      return 1
    fi
    pause 0.02
  done
}
