"""Just enough of docs/protocol.md to break its rules from outside: frames, Hello and Reject.

Written from that page alone, so it is also a second reading of it. Protobuf fields are encoded by
hand: a varint field is (number << 3 | 0), a field with a length (number << 3 | 2).
"""

import socket
import struct

FRAME_MAGIC = b"RCUA"
KIND_HELLO, KIND_WELCOME, KIND_REJECT, KIND_REQUEST, KIND_REPLY = 1, 2, 3, 4, 5
ROLE_CONTROL, ROLE_CHANNEL = 1, 2
ERROR_UNSUPPORTED = 4
HANDSHAKE_SECONDS = 5.0


def frame(kind, payload=b"", payload_bytes=None, magic=FRAME_MAGIC, reserved=b"\0" * 6):
    size = len(payload) if payload_bytes is None else payload_bytes
    return struct.pack("<4sIH6s", magic, size, kind, reserved) + payload


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number_field(number, value):
    return varint(number << 3) + varint(value)


def bytes_field(number, value):
    return varint(number << 3 | 2) + varint(len(value)) + value


def hello(version=1, oldest=1, role=ROLE_CONTROL, extra=b""):
    return (number_field(1, version) + number_field(2, oldest) + bytes_field(3, varint(1)) +
            number_field(4, role) + bytes_field(5, b"test") + bytes_field(6, b"0") + extra)


def channel(session, epoch, secret):
    ring = number_field(1, 4) + number_field(2, 4096)
    body = (number_field(1, session) + number_field(2, epoch) + number_field(4, 1) +
            bytes_field(5, secret) + bytes_field(6, ring))
    return bytes_field(8, body)


def fields(payload):
    """{number: value} of a message without repeated fields."""
    found, at = {}, 0

    def read_varint(at):
        value = shift = 0
        while True:
            value |= (payload[at] & 0x7F) << shift
            shift += 7
            at += 1
            if not payload[at - 1] & 0x80:
                return value, at

    while at < len(payload):
        key, at = read_varint(at)
        if key & 7 == 0:
            found[key >> 3], at = read_varint(at)
        else:
            size, at = read_varint(at)
            found[key >> 3] = payload[at:at + size]
            at += size
    return found


class Peer:
    """A raw connection to a worker."""

    def __init__(self, worker, seconds):
        self.socket = socket.create_connection((worker.host, worker.port), timeout=seconds)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # The worker has hung up already, which is its right.

    def read_all(self):
        """Everything until the worker closes; TimeoutError if it does not."""
        data = bytearray()
        while True:
            try:
                piece = self.socket.recv(65536)
            except ConnectionResetError:
                return bytes(data)
            if not piece:
                return bytes(data)
            data += piece

    def read_exactly(self, size):
        data = bytearray()
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise AssertionError(f"the worker closed after {len(data)} of {size} bytes")
            data += piece
        return bytes(data)

    def read_frame(self):
        magic, size, kind, _ = struct.unpack("<4sIH6s", self.read_exactly(16))
        if magic != FRAME_MAGIC:
            raise AssertionError(f"the worker's frame begins with {magic!r}")
        return kind, self.read_exactly(size)
