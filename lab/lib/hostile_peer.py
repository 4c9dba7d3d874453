"""A peer that keeps to the rules until it has an RDMA lane into a worker's ring, and then breaks one.

  hostile_peer.py WORKER_HOST WORKER_PORT DEVICE OWN_ADDRESS DEED

It speaks docs/protocol.md by hand (tests/e2e/wire.py) and verbs by pyverbs. The session is a
measurement (OpenEcho), which any client may open. Prints what came of the deed, and exits with 0
when that is what should come of it.
"""

import ipaddress
import os
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, "/project/tests/e2e")
import pyverbs.enums as verbs  # noqa: E402
from pyverbs.addr import AHAttr, GID, GlobalRoute  # noqa: E402
from pyverbs.cq import CQ  # noqa: E402
from pyverbs.device import Context  # noqa: E402
from pyverbs.mr import MR  # noqa: E402
from pyverbs.pd import PD  # noqa: E402
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr  # noqa: E402
from pyverbs.wr import SGE, SendWR  # noqa: E402
import wire  # noqa: E402

KIND_NOTICE, KIND_PING = 6, 7
OFFER, ANSWER, READY, FENCED = 1, 2, 3, 5  # Link records.
RECORD_HEADER = struct.Struct("<4sHHII")
SESSION, EPOCH, SECRET = 0x1122334455667788, 1, bytes(range(16))
N_SLOTS, SLOT_BYTES = 4, 4096
FEATURES = wire.bytes_field(3, wire.varint(3) + wire.varint(5))  # Links, and measurements.
PATIENCE_SECONDS = 20


def tensor_header(sequence, n_rows=1, row_bytes=64):
    """A step whose rows are not sent back."""
    return struct.pack("<4sHHQIIQQIIIIQ", b"RCTM", 1, 0, SESSION, EPOCH, 1, 0, sequence, n_rows, row_bytes,
                       0, 1, 0)


def announcement(sequence, piece=0, n_pieces=1):
    return sequence & 0xFFFF | piece << 16 | (n_pieces - 1) << 19


class Lane:
    """One queue pair, and memory that its peer may write to."""

    def __init__(self, device, own_address):
        context = Context(name=device)
        self.domain = PD(context)
        self.queue = CQ(context, 64)
        access = verbs.IBV_ACCESS_LOCAL_WRITE | verbs.IBV_ACCESS_REMOTE_WRITE
        self.memory = MR(self.domain, N_SLOTS * SLOT_BYTES, access)
        capacity = QPCap(max_send_wr=16, max_recv_wr=16, max_send_sge=1, max_recv_sge=1)
        self.pair = QP(self.domain, QPInitAttr(qp_type=verbs.IBV_QPT_RC, scq=self.queue, rcq=self.queue,
                                               cap=capacity, sq_sig_all=1))
        self.gid = ipaddress.IPv6Address(f"::ffff:{own_address}").packed
        self.gid_index = next(index for index in range(16)
                              if context.query_gid(1, index).gid.replace(":", "") == self.gid.hex())
        attributes = QPAttr(port_num=1)
        attributes.qp_access_flags = access
        self.pair.to_init(attributes)

    def wire(self):
        """LinkLane: a RoCEv2 port on Ethernet."""
        port = (wire.bytes_field(1, b"hostile") + wire.number_field(2, 1) + wire.number_field(3, 1) +
                wire.number_field(4, 1) + wire.bytes_field(6, self.gid) + wire.number_field(7, 2) +
                wire.number_field(8, self.gid_index) + wire.number_field(9, 120) +
                wire.number_field(10, 4096))
        return (wire.bytes_field(1, port) + wire.number_field(2, self.pair.qp_num) + wire.number_field(3, 7) +
                wire.number_field(4, self.memory.buf) + wire.number_field(5, self.memory.rkey) +
                wire.number_field(6, N_SLOTS * SLOT_BYTES))

    def connect(self, remote):
        """remote: the fields of the peer's LinkLane."""
        self.remote = remote
        gid = ipaddress.IPv6Address(wire.fields(remote[1])[6])
        attributes = QPAttr(port_num=1)
        attributes.dest_qp_num, attributes.rq_psn, attributes.sq_psn = remote[2], remote.get(3, 0), 7
        attributes.path_mtu = verbs.IBV_MTU_1024
        attributes.max_dest_rd_atomic = attributes.max_rd_atomic = 1
        attributes.min_rnr_timer, attributes.timeout = 12, 14
        attributes.retry_cnt = attributes.rnr_retry = 6
        attributes.ah_attr = AHAttr(gr=GlobalRoute(dgid=GID(gid.exploded), sgid_index=self.gid_index,
                                                   hop_limit=64), is_global=1, port_num=1)
        self.pair.to_rts(attributes)

    def write(self, offset, data, immediate=None):
        """Writes into the peer's window, wherever offset may lead; the completion's status."""
        self.memory.write(data, len(data))
        opcode = verbs.IBV_WR_RDMA_WRITE
        request = SendWR(1, num_sge=1, sg=[SGE(self.memory.buf, len(data), self.memory.lkey)],
                         opcode=opcode if immediate is None else verbs.IBV_WR_RDMA_WRITE_WITH_IMM,
                         imm_data=socket.htonl(immediate or 0), send_flags=verbs.IBV_SEND_SIGNALED)
        request.set_wr_rdma(self.remote[5], self.remote[4] + offset)
        self.pair.post_send(request)
        ends = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < ends:
            _, completions = self.queue.poll(1)
            if completions:
                return completions[0].status
        raise SystemExit("the write did not complete")


class Stream:
    """A channel's connection, cut into link records; other bytes are kept."""

    def __init__(self, peer):
        self.peer, self.data = peer, b""

    def send_record(self, kind, payload):
        self.peer.send(RECORD_HEADER.pack(b"RCLR", kind, 0, len(payload), 0) + payload)

    def read_record(self, kind):
        while True:
            while len(self.data) < RECORD_HEADER.size:
                self._read_more()
            magic, found, _, size, _ = RECORD_HEADER.unpack(self.data[:RECORD_HEADER.size])
            assert magic == b"RCLR", self.data[:16]
            while len(self.data) < RECORD_HEADER.size + size:
                self._read_more()
            payload = self.data[RECORD_HEADER.size:RECORD_HEADER.size + size]
            self.data = self.data[RECORD_HEADER.size + size:]
            if found == kind:
                return payload

    def _read_more(self):
        piece = self.peer.socket.recv(65536)
        if not piece:
            raise SystemExit("the worker closed the channel too early")
        self.data += piece

    def verdict(self):
        """What the worker did to the channel: "closed", or "fenced" if it only gave up the lane."""
        while True:
            try:
                piece = self.peer.socket.recv(65536)
            except ConnectionResetError:
                return "closed"
            except TimeoutError:
                return "nothing"
            if not piece:
                return "closed"
            self.data += piece
            at = self.data.rfind(b"RCLR")
            if at >= 0 and self.data[at + 4] == FENCED:
                return "fenced"


class Session:
    """A measurement at the worker: control connection, channel in, channel back."""

    def __init__(self, host, port, lane):
        self.host, self.port = host, port
        self.control = self._hello(wire.ROLE_CONTROL)
        threading.Thread(target=self._ping, daemon=True).start()
        self.n_requests = 0
        echo = (wire.number_field(1, SESSION) + wire.number_field(2, EPOCH) + wire.bytes_field(3, SECRET) +
                wire.number_field(4, SLOT_BYTES) + wire.number_field(5, N_SLOTS) +
                wire.bytes_field(6, wire.varint(2)))
        self._request(24, echo)
        self.there = Stream(self._hello(wire.ROLE_CHANNEL, self._channel(0, direction=1)))
        self.back = Stream(self._hello(wire.ROLE_CHANNEL, self._channel(1, direction=2)))
        self._request(19, wire.number_field(1, SESSION) + wire.number_field(2, EPOCH))
        self.lane = lane

    def offer_lane(self):
        """We send: offers our lane for the channel to the worker, and connects what it answers."""
        self.there.send_record(OFFER, wire.number_field(1, 1) + wire.bytes_field(2, self.lane.wire()) +
                               wire.number_field(6, 1 << 20))
        answer = wire.fields(self.there.read_record(ANSWER))
        if 2 not in answer:
            raise SystemExit(f"the worker accepted no lane: {answer}")
        self.lane.connect(wire.fields(wire.fields(answer[2])[2]))
        self.there.send_record(READY, wire.number_field(1, 1))

    def accept_lane(self):
        """We receive: takes the first lane that the worker offers, our memory as the ring."""
        offer = wire.fields(self.back.read_record(OFFER))
        self.lane.connect(wire.fields(offer[2]))
        accepted = wire.bytes_field(2, self.lane.wire())
        self.back.send_record(ANSWER, wire.number_field(1, offer[1]) + wire.bytes_field(2, accepted))
        self.back.read_record(READY)

    def decline_lane(self):
        """We receive: over TCP, please."""
        offer = wire.fields(self.back.read_record(OFFER))
        self.back.send_record(ANSWER, wire.number_field(1, offer[1]))

    def _hello(self, role, extra=b""):
        peer = wire.Peer(self, PATIENCE_SECONDS)
        peer.send(wire.frame(wire.KIND_HELLO, wire.hello(role=role, extra=FEATURES + extra)))
        kind, payload = peer.read_frame()
        if kind != wire.KIND_WELCOME:
            raise SystemExit(f"the worker says: {payload}")
        return peer

    @staticmethod
    def _channel(number, direction):
        ring = wire.number_field(1, N_SLOTS) + wire.number_field(2, SLOT_BYTES)
        return wire.bytes_field(8, wire.number_field(1, SESSION) + wire.number_field(2, EPOCH) +
                                wire.number_field(3, number) + wire.number_field(4, direction) +
                                wire.bytes_field(5, SECRET) + wire.bytes_field(6, ring))

    def _request(self, number, body):
        self.n_requests += 1
        self.control.send(wire.frame(wire.KIND_REQUEST, wire.number_field(1, self.n_requests) +
                                     wire.bytes_field(number, body)))
        while True:
            kind, payload = self.control.read_frame()
            if kind == wire.KIND_REPLY:
                if 10 in wire.fields(payload):
                    raise SystemExit(f"the worker refuses: {payload}")
                return

    def why_failed(self):
        """What the worker tells the session's owner, or nothing."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < ends:
            kind, payload = self.control.read_frame()
            failed = wire.fields(payload).get(21) if kind == KIND_NOTICE else None
            if failed is not None:
                return wire.fields(failed)[4].decode()
        return ""

    def _ping(self):
        """Silence would be taken for loss."""
        number = 0
        while True:
            number += 1
            self.control.send(wire.frame(KIND_PING, wire.number_field(1, number)))
            time.sleep(0.5)


def deed_honest(session):
    """None: a good message is answered. So what is seen after the others is their own doing."""
    session.decline_lane()
    status = session.lane.write(0, tensor_header(0) + bytes(64), announcement(0))
    data = session.back.peer.socket.recv(65536) if not session.back.data else session.back.data
    while b"RCTM" not in data:
        data += session.back.peer.socket.recv(65536)
    return status, "answered"


def sending(offset, data, immediate):
    def deed(session):
        return session.lane.write(offset, data, immediate), session.there.verdict()
    return deed


def deed_forged_credits(session):
    return session.lane.write(0, struct.pack("<Q", 1 << 40)), session.back.verdict()


def deed_second_hello(session):
    # Long enough for what the worker has to read before it knows what it is.
    session.there.peer.send(wire.frame(wire.KIND_HELLO, wire.hello(extra=FEATURES * 10)))
    return 0, session.there.verdict()


RING = N_SLOTS * SLOT_BYTES
GOOD = tensor_header(0) + bytes(64)
# name -> (deed, whether we send or receive, completion status, what the worker may do)
DROPPED = {"closed"}
DEEDS = {
    "honest": (deed_honest, "send", verbs.IBV_WC_SUCCESS, {"answered"}),
    "slot_not_held": (sending(0, GOOD, announcement(N_SLOTS + 1)), "send", verbs.IBV_WC_SUCCESS, DROPPED),
    "longer_than_slot": (sending(0, tensor_header(0, n_rows=1 << 20, row_bytes=4096) + bytes(64),
                                 announcement(0)), "send", verbs.IBV_WC_SUCCESS, DROPPED),
    "longer_than_written": (sending(0, tensor_header(0, row_bytes=2048), announcement(0)), "send",
                            verbs.IBV_WC_SUCCESS, DROPPED),
    "nothing_written": (sending(0, b"", announcement(0)), "send", verbs.IBV_WC_SUCCESS, DROPPED),
    "no_header": (sending(0, b"\xff" * 128, announcement(0)), "send", verbs.IBV_WC_SUCCESS, DROPPED),
    "meaningless_bits": (sending(0, GOOD, 0xFFFFFFFF), "send", verbs.IBV_WC_SUCCESS, DROPPED),
    # The worker's card refuses it and breaks the lane; nothing else can be known there.
    "outside_the_ring": (sending(RING, GOOD, announcement(0)), "send", verbs.IBV_WC_REM_ACCESS_ERR,
                         {"closed", "fenced"}),
    "forged_credits": (deed_forged_credits, "receive", verbs.IBV_WC_SUCCESS, DROPPED),
    "second_hello": (deed_second_hello, "send", verbs.IBV_WC_SUCCESS, DROPPED),
}


def main():
    host, port, device, own_address, name = sys.argv[1:]
    deed, role, wanted_status, wanted_verdicts = DEEDS[name]
    session = Session(host, int(port), Lane(device, own_address))
    session.offer_lane() if role == "send" else session.accept_lane()
    status, verdict = deed(session)
    reason = session.why_failed() if verdict == "closed" else ""
    print(f"{name}: completion status {status}, channel {verdict}. {reason}", flush=True)
    as_wanted = status == wanted_status and verdict in wanted_verdicts and bool(reason) == (verdict == "closed")
    # Objects of verbs and their threads are the kernel's to clean up.
    os._exit(0 if as_wanted else 1)


if __name__ == "__main__":
    main()
