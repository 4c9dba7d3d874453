"""recua net: what it says of devices and links, and what workers take from strangers who measure."""

import pathlib
import signal
import socket
import threading
import unittest

import wire
from harness import EXIT_FAILURE, EXIT_USAGE, SLOW, TestCase, wait_until

PATIENCE_SECONDS = (wire.HANDSHAKE_SECONDS + 5) * SLOW
OPEN_ECHO, START_SESSION, ERROR_REPLY, DONE = 24, 19, 10, 11
SLOT_BYTES_MAX, SLOTS_MAX, SESSIONS_MAX = 8 << 20, 64, 8
QUICK = ["--seconds", "0.05"]


def has_rdma():
    folder = pathlib.Path("/sys/class/infiniband")
    return folder.is_dir() and any(folder.iterdir())


class Devices(TestCase):
    @unittest.skipIf(has_rdma(), "this machine has RDMA devices")
    def test_a_machine_without_rdma_is_told_why(self):
        answer = self.succeed("net", "devices", "--json").json()
        self.assertEqual(answer["devices"], [])
        self.assertTrue(answer["reason"])
        self.assertTrue(answer["advice"])
        text = self.succeed("net", "devices").text
        self.assertIn(answer["reason"], text)
        for advice in answer["advice"]:
            self.assertIn(advice, text)

    @unittest.skipUnless(has_rdma(), "this machine has no RDMA devices")
    def test_devices_are_listed_with_verdicts(self):
        answer = self.succeed("net", "devices", "--json").json()
        for device in answer["devices"]:
            for port in device["ports"]:
                self.assertTrue(port["reason"])
                for gid in port["gids"]:
                    self.assertTrue(gid["reason"])

    def test_help_is_there_at_each_level(self):
        for words in (["net"], ["net", "devices"], ["net", "test"]):
            text = self.succeed(*words, "--help").text
            self.assertIn("recua " + " ".join(words), text)
            self.assertIn("Examples:", text)

    def test_wrong_usage_is_explained(self):
        self.assertEqual(self.recua("net").code, EXIT_USAGE)
        self.fail_with(EXIT_USAGE, ["devicse", "devices"], "net", "devicse")
        self.fail_with(EXIT_USAGE, ["--jsno", "--json"], "net", "devices", "--jsno")


class Measure(TestCase):
    def check_transport(self, entry, sizes):
        self.assertTrue(entry["available"], entry)
        self.assertIsNone(entry["reason"])
        self.assertTrue(entry["description"])
        self.assertEqual([latency["bytes"] for latency in entry["latency"]], sizes)
        for latency in entry["latency"]:
            self.assertGreaterEqual(latency["n_samples"], 5)
            self.assertGreater(latency["p50_us"], 0)
            self.assertGreaterEqual(latency["p99_us"], latency["p50_us"])
        self.assertEqual(entry["bandwidth"]["bytes"], 1 << 20)
        self.assertGreater(entry["bandwidth"]["bytes_per_second"], 0)

    def test_tcp_to_a_local_worker(self):
        worker = self.worker()
        answer = self.succeed("net", "test", worker.address, "--json", "--transport", "tcp",
                              *QUICK).json()
        self.assertEqual(answer["worker"]["address"], worker.address)
        self.assertEqual(len(answer["transports"]), 1)
        self.assertEqual(answer["transports"][0]["transport"], "tcp")
        self.check_transport(answer["transports"][0], [64, 1024, 8192, 65536, 1 << 20])
        self.check_alive(worker)

    def test_every_transport_works_or_says_why_not(self):
        worker = self.worker()
        answer = self.succeed("net", "test", worker.address, "--json", "--bytes", "64,8192",
                              *QUICK).json()
        names = [entry["transport"] for entry in answer["transports"]]
        self.assertEqual(names, ["shm", "rdma", "tcp"])
        for entry in answer["transports"]:
            if entry["available"]:
                self.check_transport(entry, [64, 8192])
            else:
                self.assertTrue(entry["reason"])
                self.assertEqual(entry["latency"], [])
        # The first one that works is what links use.
        works = [entry["transport"] for entry in answer["transports"] if entry["available"]]
        self.assertEqual(answer["chosen"]["transport"], works[0])
        self.assertTrue(answer["chosen"]["reason"])

    def test_the_table_shows_what_works_and_what_does_not(self):
        worker = self.worker()
        text = self.succeed("net", "test", worker.address, "--bytes", "1000", *QUICK).text
        for words in (worker.address, "1000 B", "bandwidth", "tcp", "recua uses ", "because"):
            self.assertIn(words, text)

    def test_large_messages_and_large_counts(self):
        worker = self.worker()
        answer = self.succeed("net", "test", worker.address, "--json", "--transport", "tcp",
                              "--bytes", f"1,{SLOT_BYTES_MAX - 64}", *QUICK).json()
        self.check_transport(answer["transports"][0], [1, SLOT_BYTES_MAX - 64])

    def test_a_worker_serves_models_while_it_is_measured(self):
        worker = self.worker()
        measuring = self.start("net", "test", worker.address, "--seconds", "1", "--json")
        wait_until(lambda: "link test" in worker.err, "the measurement's connection")
        self.check_stories("--workers", worker.address)
        done = measuring.wait()
        self.assertEqual(done.code, 0, str(done))

    def test_wrong_usage_is_explained(self):
        for words, arguments in ((["host"], []), (["--bytes", "0"], ["box", "--bytes", "64,0"]),
                                 (["--bytes"], ["box", "--bytes", str(SLOT_BYTES_MAX)]),
                                 (["--seconds", "-1"], ["box", "--seconds", "-1"]),
                                 (["--transport", "roce"], ["box", "--transport", "roce"]),
                                 (["address"], ["a/b:7500"])):
            with self.subTest(arguments=arguments):
                self.fail_with(EXIT_USAGE, words, "net", "test", *arguments)

    def test_a_worker_that_is_not_there_is_named(self):
        worker = self.worker()
        worker.kill()
        self.fail_with(EXIT_FAILURE, [worker.address, "worker"], "net", "test", worker.address)

    def test_a_worker_that_dies_is_named(self):
        worker = self.worker()
        measuring = self.start("net", "test", worker.address, "--transport", "tcp", "--seconds", 30)
        wait_until(lambda: "link test" in worker.err, "the measurement's connection")
        worker.kill()
        self.check_failure(measuring.wait(), EXIT_FAILURE, [worker.address])

    def test_a_worker_that_stops_to_answer_is_named(self):
        worker = self.worker()
        measuring = self.start("net", "test", worker.address, "--transport", "tcp", "--seconds", 30)
        wait_until(lambda: "link test" in worker.err, "the measurement's connection")
        worker.send(signal.SIGSTOP)
        self.check_failure(measuring.wait(), EXIT_FAILURE, [worker.address])

    def test_an_older_worker_is_told_apart(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            def serve():
                connection, _ = server.accept()
                with connection:
                    header = connection.recv(16, socket.MSG_WAITALL)
                    connection.recv(int.from_bytes(header[4:8], "little"), socket.MSG_WAITALL)
                    welcome = (wire.number_field(1, 1) + wire.bytes_field(2, b"\1\2") +
                               wire.bytes_field(3, b"old") + wire.bytes_field(4, b"0.0.9"))
                    connection.sendall(wire.frame(wire.KIND_WELCOME, welcome))
                    connection.recv(1)

            thread = threading.Thread(target=serve)
            thread.start()
            port = server.getsockname()[1]
            self.fail_with(EXIT_FAILURE, ["0.0.9", "update"], "net", "test", f"127.0.0.1:{port}")
            thread.join()


class Hostile(TestCase):
    """Strangers who ask for measurements."""

    def setUp(self):
        super().setUp()
        self.victim = self.worker()

    def welcomed(self):
        peer = wire.Peer(self.victim, PATIENCE_SECONDS)
        self.cleanup.enter_context(peer)
        peer.send(wire.frame(wire.KIND_HELLO, wire.hello()))
        self.assertEqual(peer.read_frame()[0], wire.KIND_WELCOME)
        return peer

    def request(self, peer, number, body, request_id=7):
        peer.send(wire.frame(wire.KIND_REQUEST,
                             wire.number_field(1, request_id) + wire.bytes_field(number, body)))
        while True:
            kind, payload = peer.read_frame()
            if kind == wire.KIND_REPLY:
                return wire.fields(payload)

    @staticmethod
    def echo(session=1, secret=b"s" * 16, slot_bytes=4096, n_slots=8):
        return (wire.number_field(1, session) + wire.number_field(2, 1) +
                wire.bytes_field(3, secret) + wire.number_field(4, slot_bytes) +
                wire.number_field(5, n_slots))

    def check_refused(self, reply, words):
        self.assertIn(ERROR_REPLY, reply)
        message = wire.fields(reply[ERROR_REPLY])[2].decode()
        for word in words:
            self.assertIn(word, message)

    def check_unharmed(self):
        self.check_alive(self.victim)
        self.check_stories("--workers", self.victim.address)

    def test_rings_beyond_the_bounds_are_refused(self):
        peer = self.welcomed()
        for words, body in (("n_slots", self.echo(n_slots=SLOTS_MAX + 1)),
                            ("n_slots", self.echo(n_slots=0)),
                            ("n_slots", self.echo(n_slots=(1 << 32) - 1)),
                            ("slot_bytes", self.echo(slot_bytes=SLOT_BYTES_MAX + 1)),
                            ("slot_bytes", self.echo(slot_bytes=63)),
                            ("slot_bytes", self.echo(slot_bytes=(1 << 64) - 1)),
                            ("secret", self.echo(secret=b"short"))):
            with self.subTest(words=words):
                self.check_refused(self.request(peer, OPEN_ECHO, body), [words])
        self.check_unharmed()

    def test_more_memory_than_there_is_is_refused(self):
        self.victim = self.worker("--memory", "0.125")
        peer = self.welcomed()
        big = self.echo(slot_bytes=SLOT_BYTES_MAX, n_slots=SLOTS_MAX)
        self.check_refused(self.request(peer, OPEN_ECHO, big), ["free"])
        self.check_unharmed()

    def test_only_a_few_are_served_at_once(self):
        peer = self.welcomed()
        for session in range(1, SESSIONS_MAX + 1):
            self.assertIn(DONE, self.request(peer, OPEN_ECHO, self.echo(session=session)))
        self.check_refused(self.request(peer, OPEN_ECHO, self.echo(session=99)), ["already"])
        self.check_refused(self.request(peer, OPEN_ECHO, self.echo(session=1)), ["already"])
        peer.socket.close()
        wait_until(lambda: DONE in self.request(self.welcomed(), OPEN_ECHO, self.echo(session=3)),
                   "room for another measurement")
        self.check_unharmed()

    def test_a_measurement_without_channels_does_not_start(self):
        peer = self.welcomed()
        self.assertIn(DONE, self.request(peer, OPEN_ECHO, self.echo(session=5)))
        start = wire.number_field(1, 5) + wire.number_field(2, 1)
        self.check_refused(self.request(peer, START_SESSION, start), ["channels"])
        self.check_unharmed()

    def test_a_channel_with_another_secret_is_rejected(self):
        peer = self.welcomed()
        self.assertIn(DONE, self.request(peer, OPEN_ECHO, self.echo(session=6)))
        with wire.Peer(self.victim, PATIENCE_SECONDS) as stranger:
            body = wire.channel(session=6, epoch=1, secret=b"x" * 16)
            stranger.send(wire.frame(wire.KIND_HELLO, wire.hello(role=wire.ROLE_CHANNEL,
                                                                 extra=body)))
            self.assertEqual(stranger.read_frame()[0], wire.KIND_REJECT)
        self.check_unharmed()


if __name__ == "__main__":
    unittest.main()
