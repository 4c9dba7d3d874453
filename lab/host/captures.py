"""What the packets of a scenario say, decoded by tshark. Each check returns why it failed, or ""."""

import subprocess

# RoCEv2 opcodes of reliable connections (InfiniBand specification, table 38).
WRITE_LAST_WITH_IMMEDIATE, WRITE_ONLY_WITH_IMMEDIATE = 9, 11
WITH_IMMEDIATE = {WRITE_LAST_WITH_IMMEDIATE, WRITE_ONLY_WITH_IMMEDIATE}
WRITES = {6, 7, 8, 10} | WITH_IMMEDIATE
SENDS = {0, 1, 2, 3, 4, 5}
TENSOR_MAGIC = b"RCTM"  # docs/protocol.md, "Tensor messages".
FRAME_MAGIC = b"RCUA"

# Over TCP while tokens are made: pings and pongs (a frame of less than 64 bytes each), and at the
# beginning perhaps the last link's report. No tensor message, whatever its size.
CONTROL_SEGMENT_BYTES_MAX = 512
CONTROL_BYTES_PER_SECOND_MAX = 2048


def tshark(path, fields, display_filter=""):
    """Rows of fields; an absent field is an empty text."""
    command = ["tshark", "-r", path, "-T", "fields", "-E", "separator=/t", "-E", "occurrence=f"]
    for field in fields:
        command += ["-e", field]
    if display_filter:
        command += ["-Y", display_filter]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


def malformed(path):
    """Frames whose RoCEv2 part tshark cannot read. (It also guesses what a payload may be: the eight
    bytes of a credit can look like an ancient protocol, in which case that follows infiniband.)"""
    return sum(protocols.endswith(("infiniband", "infiniband:data", "udp", "ip"))
               for _, protocols in tshark(path, ["frame.number", "frame.protocols"], "_ws.malformed"))


def decode_is_rdma_only(folder):
    """clean: the activations of all tokens crossed as writes with immediate data, and TCP carried
    control and heartbeats at most. Files: rdma.pcap (the link), tcp.pcap (all TCP), n_messages."""
    rdma, tcp = folder / "a" / "rdma.pcap", folder / "a" / "tcp.pcap"
    n_wanted = int((folder / "a" / "n_messages").read_text())
    if malformed(rdma):
        return f"tshark calls {malformed(rdma)} frames of {rdma.name} malformed"
    frames = [(float(when), int(opcode), bytes.fromhex(data.replace(":", ""))) for when, opcode, data in
              tshark(rdma, ["frame.time_epoch", "infiniband.bth.opcode", "data.data"], "udp.dstport == 4791")]
    immediates = [when for when, opcode, _ in frames if opcode in WITH_IMMEDIATE]
    if len(immediates) < n_wanted:
        return f"{len(immediates)} RoCEv2 writes with immediate data, expected at least {n_wanted}"
    n_messages = sum(TENSOR_MAGIC in data for _, opcode, data in frames if opcode in WRITES)
    if n_messages < n_wanted:
        return f"{n_messages} RoCEv2 writes carry a tensor message, expected at least {n_wanted}"
    return _tcp_is_control_only(tcp, immediates[0], immediates[-1])


def writes_without_immediate(folder):
    """no_immediates: activations crossed as plain writes, each followed by a SEND."""
    rdma = folder / "a" / "rdma.pcap"
    n_wanted = int((folder / "a" / "n_messages").read_text())
    opcodes = [int(row[0]) for row in tshark(rdma, ["infiniband.bth.opcode"], "udp.dstport == 4791")]
    if WITH_IMMEDIATE & set(opcodes):
        return "there are writes with immediate data although they are switched off"
    n_sends = sum(opcode in SENDS for opcode in opcodes)
    if n_sends < n_wanted:
        return f"{n_sends} RoCEv2 sends, expected at least {n_wanted}"
    return ""


def connected_by_rdma_cm(folder):
    """rdma_cm: its management datagrams set the connections up."""
    requests = tshark(folder / "a" / "rdma.pcap", ["frame.number"], "infiniband.mad.attributeid == 0x0010")
    if len(requests) < 2:
        return f"{len(requests)} ConnectRequests of rdma_cm, expected one per link that crosses"
    return ""


def _tcp_is_control_only(path, first, last):
    segments = [(float(when), bytes.fromhex(payload.replace(":", ""))) for when, payload in
                tshark(path, ["frame.time_epoch", "tcp.payload"], "tcp.len > 0")]
    if not segments:
        return "the TCP capture is empty, although the control connections use TCP"
    for _, payload in segments:
        if TENSOR_MAGIC in payload:
            return "a tensor message went over TCP"
    during = [payload for when, payload in segments if first < when < last]
    longest = max(map(len, during), default=0)
    if longest > CONTROL_SEGMENT_BYTES_MAX:
        return f"a TCP segment of {longest} bytes during decoding: {max(during, key=len)[:48].hex(' ')}"
    allowed = CONTROL_BYTES_PER_SECOND_MAX * max(1.0, last - first)
    if sum(map(len, during)) > allowed:
        return f"{sum(map(len, during))} bytes over TCP in {last - first:.1f} s of decoding"
    return ""
