"""A peer that sends nonsense loses its connection, and nobody else notices."""

import os
import random
import time
import unittest

import wire
from harness import SLOW, TestCase, addresses, over

# A worker may wait this long for the rest of a Hello.
PATIENCE_SECONDS = (wire.HANDSHAKE_SECONDS + 5) * SLOW


class Hostile(TestCase):
    def setUp(self):
        super().setUp()
        self.victim = self.worker()

    def peer(self):
        peer = wire.Peer(self.victim, PATIENCE_SECONDS)
        self.cleanup.enter_context(peer)
        return peer

    def check_unharmed(self):
        """The worker lives and serves a well-behaved coordinator exactly."""
        self.check_alive(self.victim)
        self.check_stories("--workers", self.victim.address)
        self.check_alive(self.victim)

    def answer_to(self, data):
        """Sends, and returns what came back until the worker hung up."""
        peer = self.peer()
        peer.send(data)
        return peer.read_all()

    def test_garbage_is_hung_up_on(self):
        generator = random.Random(1)
        for size in (1, 16, 17, 1000, 100000):
            data = bytes([0x58]) + generator.randbytes(size - 1)
            with self.subTest(size=size):
                self.answer_to(data)
        self.check_unharmed()

    def test_garbage_behind_the_right_magic_is_hung_up_on(self):
        generator = random.Random(2)
        for _ in range(20):
            self.answer_to(wire.FRAME_MAGIC + generator.randbytes(200))
        self.check_unharmed()

    def test_a_browser_gets_an_answer_it_understands(self):
        answer = self.answer_to(b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 400"), answer[:80])
        self.check_unharmed()

    def test_a_tls_client_gets_an_alert(self):
        client_hello = bytes.fromhex("16030100c8010000c40303") + bytes(192)
        self.assertEqual(self.answer_to(client_hello), bytes.fromhex("15030300020246"))
        self.check_unharmed()

    def test_an_oversize_length_is_hung_up_on_at_once(self):
        for size in (65537, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1):
            with self.subTest(size=size):
                started = time.monotonic()
                self.answer_to(wire.frame(wire.KIND_HELLO, payload_bytes=size))
                self.assertLess(time.monotonic() - started, wire.HANDSHAKE_SECONDS * SLOW)
        self.check_unharmed()

    def test_half_a_header_and_silence_is_hung_up_on(self):
        started = time.monotonic()
        self.answer_to(wire.frame(wire.KIND_HELLO)[:7])
        # Not at once, since the rest may be on its way; a little early is rounding.
        self.assertGreater(time.monotonic() - started, 1.0)
        self.check_unharmed()

    def test_silence_does_not_keep_others_waiting(self):
        silent = [self.peer() for _ in range(100)]
        for peer in silent[:50]:
            peer.send(wire.frame(wire.KIND_HELLO, payload_bytes=1000))
        self.check_unharmed()

    def test_another_version_is_told_both_versions(self):
        peer = self.peer()
        peer.send(wire.frame(wire.KIND_HELLO, wire.hello(version=99, oldest=98)))
        kind, payload = peer.read_frame()
        self.assertEqual(kind, wire.KIND_REJECT)
        reject = wire.fields(payload)
        self.assertEqual(reject[1], wire.ERROR_UNSUPPORTED)
        for word in (b"98", b"1"):
            self.assertIn(word, reject[2])
        self.assertEqual(peer.read_all(), b"")
        self.check_unharmed()

    def test_a_newer_peer_that_still_speaks_ours_is_welcome(self):
        peer = self.peer()
        peer.send(wire.frame(wire.KIND_HELLO, wire.hello(version=99, oldest=1)))
        kind, payload = peer.read_frame()
        self.assertEqual(kind, wire.KIND_WELCOME)
        self.assertEqual(wire.fields(payload)[1], 1)

    def test_unknown_fields_are_ignored(self):
        peer = self.peer()
        later = wire.number_field(900, 7) + wire.bytes_field(901, b"from the future")
        peer.send(wire.frame(wire.KIND_HELLO, wire.hello(extra=later)))
        self.assertEqual(peer.read_frame()[0], wire.KIND_WELCOME)

    def test_a_wrong_role_is_rejected(self):
        peer = self.peer()
        peer.send(wire.frame(wire.KIND_HELLO, wire.hello(role=9)))
        self.assertEqual(peer.read_frame()[0], wire.KIND_REJECT)
        self.check_unharmed()

    def test_a_channel_of_no_session_is_rejected(self):
        peer = self.peer()
        stranger = wire.channel(session=1, epoch=1, secret=os.urandom(16))
        peer.send(wire.frame(wire.KIND_HELLO, wire.hello(role=wire.ROLE_CHANNEL, extra=stranger)))
        self.assertEqual(peer.read_frame()[0], wire.KIND_REJECT)
        self.check_unharmed()

    def welcomed(self):
        peer = self.peer()
        peer.send(wire.frame(wire.KIND_HELLO, wire.hello()))
        self.assertEqual(peer.read_frame()[0], wire.KIND_WELCOME)
        return peer

    def test_broken_rules_after_the_handshake_are_hung_up_on(self):
        for what, data in (
                ("garbage", b"\xff" * 64),
                ("oversize", wire.frame(wire.KIND_REQUEST, payload_bytes=(1 << 24) + 1)),
                ("reserved", wire.frame(wire.KIND_REQUEST, reserved=b"\1" * 6)),
                ("not protobuf", wire.frame(wire.KIND_REQUEST, b"\xff" * 50)),
                ("second hello", wire.frame(wire.KIND_HELLO, wire.hello()))):
            with self.subTest(what=what):
                peer = self.welcomed()
                peer.send(data)
                peer.read_all()
        self.check_unharmed()

    def test_empty_requests_are_answered_or_hung_up_on(self):
        # Bodies 10 to 40 without content: replies, notices, requests and unknown ones.
        peer = self.welcomed()
        for number in range(10, 41):
            body = wire.number_field(1, number) + wire.bytes_field(number, b"")
            peer.send(wire.frame(wire.KIND_REQUEST, body))
        self.check_unharmed()

    def test_hostile_and_honest_peers_at_once(self):
        other = self.worker()
        for _ in range(10):
            for data in (b"\0" * 100, wire.frame(wire.KIND_HELLO, payload_bytes=(1 << 32) - 1),
                         wire.frame(wire.KIND_HELLO)[:5]):
                self.peer().send(data)
            self.check_stories(*over([self.victim, other]))


if __name__ == "__main__":
    unittest.main()
