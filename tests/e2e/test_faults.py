"""Workers that are not there, stop or die: a clear error soon, and everybody else goes on."""

import signal
import socket
import time
import unittest

from harness import (EXIT_FAILURE, EXIT_OK, EXIT_USAGE, GREEDY, SLOW, STORIES, TestCase, over,
                     random_model, slow_model, wait_until)

# "Within a second" of the death; a broken connection is seen at once, so this is generous.
NOTICED_SECONDS = 1.0


class Unreachable(TestCase):
    def test_a_closed_port_is_named(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.fail_with(EXIT_FAILURE, [f"127.0.0.1:{port}", "refused"], "run", "-m", STORIES, "-p",
                       "a", "--workers", f"127.0.0.1:{port}", seconds=15)

    def test_a_name_that_does_not_exist_is_named(self):
        self.fail_with(EXIT_FAILURE, ["no-such-host.invalid"], "run", "-m", STORIES, "-p", "a",
                       "--workers", "no-such-host.invalid:7500", seconds=30)

    def test_one_of_two_missing_is_the_one_that_is_named(self):
        worker = self.worker()
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.fail_with(EXIT_FAILURE, [f"127.0.0.1:{port}"], "run", "-m", STORIES, "-p", "a",
                       "--workers", f"{worker.address},127.0.0.1:{port}", seconds=15)
        self.check_alive(worker)
        self.check_stories("--workers", worker.address)

    def test_a_port_that_never_answers_is_given_up(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            self.fail_with(EXIT_FAILURE, [f"127.0.0.1:{port}"], "run", "-m", STORIES, "-p", "a",
                           "--workers", f"127.0.0.1:{port}", "--worker-timeout", 1, seconds=15)

    def test_a_port_where_something_else_answers_is_named(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            run = self.start("run", "-m", STORIES, "-p", "a", "--workers", f"127.0.0.1:{port}")
            server.settimeout(10 * SLOW)
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
                done = run.wait(seconds=15)
        self.check_failure(done, EXIT_FAILURE, [f"127.0.0.1:{port}"])

    def test_wrong_addresses_are_wrong_usage(self):
        for text in ("127.0.0.1:99999", "127.0.0.1:x", "[::1:7500", ","):
            with self.subTest(text=text):
                self.fail_with(EXIT_USAGE, ["--workers"], "run", "-m", STORIES, "-p", "a",
                               "--workers", text)


class Dies(TestCase):
    def generating(self, n_workers=2):
        """Workers, and a run that has printed its first text and has long to go."""
        model = slow_model()
        workers = self.workers(n_workers, models=model.parent)
        run = self.start("run", "-m", model, "-p", "a", "-n", 3500, "-c", 4096, *GREEDY,
                         *over(workers))
        wait_until(lambda: run.out or not run.running, "the first text", seconds=60)
        self.assertTrue(run.running, run.err)
        return workers, run

    def check_noticed(self, run, worker, since):
        done = run.wait(seconds=20)
        seconds = time.monotonic() - since
        self.check_failure(done, EXIT_FAILURE, [worker.address])
        self.assertLess(seconds, NOTICED_SECONDS * SLOW, str(done))

    def test_a_worker_killed_during_decode_is_named_within_a_second(self):
        for index in (0, 1):
            with self.subTest(worker=index):
                workers, run = self.generating()
                workers[index].kill()
                self.check_noticed(run, workers[index], time.monotonic())
                other = workers[1 - index]
                self.check_alive(other)
                answer = self.recua("run", "-m", slow_model(), "-p", "a", "-n", 2, "--workers",
                                    other.address)
                self.assertEqual(answer.code, EXIT_OK, str(answer))

    def test_a_worker_killed_in_the_middle_of_three_is_named(self):
        workers, run = self.generating(n_workers=3)
        workers[1].kill()
        self.check_noticed(run, workers[1], time.monotonic())

    def test_a_worker_killed_during_load_is_named_within_a_second(self):
        model = random_model(layers=16, dim=1024, ffn=4096, type_name="F16")
        worker = self.worker(models=None)  # It has no file, so loading takes a while.
        run = self.start("run", "-m", model, "-p", "a", "-n", 1, "--workers", worker.address)
        wait_until(lambda: not run.running or has_bytes(worker.cache), "the first weights to arrive")
        self.assertTrue(run.running, run.err)
        worker.kill()
        self.check_noticed(run, worker, time.monotonic())

    def test_a_worker_that_falls_silent_is_noticed_by_its_heartbeat(self):
        workers, run = self.generating()
        workers[1].send(signal.SIGSTOP)
        try:
            done = run.wait(seconds=15)
        finally:
            workers[1].send(signal.SIGCONT)
        self.check_failure(done, EXIT_FAILURE, [workers[1].address])

    def test_workers_outlive_a_killed_coordinator(self):
        workers, run = self.generating()
        run.kill()
        answer = self.recua("run", "-m", slow_model(), "-p", "a", "-n", 2, *over(workers))
        self.assertEqual(answer.code, EXIT_OK, str(answer))

    def test_local_workers_end_with_a_killed_coordinator(self):
        run = self.start("run", "-m", slow_model(), "-p", "a", "-n", 3500, "-c", 4096, *GREEDY,
                         "--local-workers", 2)
        wait_until(lambda: run.out or not run.running, "the first text", seconds=60)
        self.assertTrue(run.running, run.err)
        children = child_processes(run.pid)
        run.kill()
        wait_until(lambda: not any(alive(child) for child in children),
                   "the local workers to end")

    def test_control_c_stops_a_spread_run(self):
        workers, run = self.generating()
        run.send(signal.SIGINT)
        done = run.wait(seconds=3)
        self.assertEqual(done.code, 130, str(done))
        self.assertTrue(done.text.endswith("\n"))
        for worker in workers:
            self.check_alive(worker)


class WorkerProcess(TestCase):
    def test_ends_cleanly_when_asked(self):
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=signal_number):
                worker = self.worker()
                worker.send(signal_number)
                self.assertIn(worker.wait(seconds=5).code, (EXIT_OK, 128 + signal_number))

    def test_says_that_its_port_is_taken(self):
        worker = self.worker()
        self.fail_with(EXIT_FAILURE, [worker.address, "in use"], "worker", "--listen",
                       worker.address, "--models", STORIES.parent, seconds=10)

    def test_refuses_wrong_addresses(self):
        for text in ("127.0.0.1:99999", "[::1:7500", "127.0.0.1:x"):
            with self.subTest(text=text):
                self.fail_with(EXIT_USAGE, ["--listen"], "worker", "--listen", text, seconds=10)

    def test_refuses_a_folder_that_is_not_there(self):
        done = self.recua("worker", "--listen", "127.0.0.1:0", "--models", "/nowhere", seconds=10)
        self.assertIn(done.code, (EXIT_FAILURE, EXIT_USAGE), str(done))
        self.assertIn("/nowhere", done.message)


def has_bytes(folder):
    return folder.exists() and any(path.is_file() for path in folder.rglob("*"))


def child_processes(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as children:
        return [int(child) for child in children.read().split()]


def alive(pid):
    """Whether the process runs; a zombie that nobody has waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    unittest.main()
