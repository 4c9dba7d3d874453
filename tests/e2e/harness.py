"""Starts real recua processes, and ends every one it started.

Nothing here sleeps and hopes: each wait is for an event (a file, a byte, an exit) with a deadline,
and a deadline that passes is a failure that says what was waited for.
"""

import contextlib
import functools
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import unittest
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODELS = ROOT / "tests" / "golden" / "models"
STORIES = MODELS / "stories260K.gguf"
BINARY = os.environ.get("RECUA_BINARY", str(ROOT / "build" / "release" / "bin" / "recua"))
# Sanitizer and debug builds get this many times the deadlines.
SLOW = float(os.environ.get("RECUA_E2E_SLOW", "1"))

F32_CACHE = ["-ctk", "f32", "-ctv", "f32"]
GREEDY = ["--temp", "0", "--ignore-eos"]

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class Done:
    """A finished process."""

    def __init__(self, arguments, code, out, err):
        self.arguments, self.code = arguments, code
        self.out, self.err = out, err

    @property
    def text(self):
        return self.out.decode("utf-8")  # Strict: what recua prints is UTF-8.

    @property
    def message(self):
        return self.err.decode("utf-8", "replace")

    def json(self):
        return json.loads(self.text)

    def __str__(self):
        command = " ".join(str(argument) for argument in self.arguments)
        return f"`recua {command}` exited with {self.code}; standard error:\n{self.message}"


def wait_until(condition, what, seconds=60.0):
    """Returns condition()'s first true value."""
    deadline = time.monotonic() + seconds * SLOW
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds * SLOW:.0f} s for {what}")
        time.sleep(0.002)


def ids_flag(ids):
    return ",".join(str(token) for token in ids)


class Process:
    """A running recua in a session of its own; output goes to files."""

    def __init__(self, arguments, scratch, name, stdin=None):
        self.arguments = [str(argument) for argument in arguments]
        self.out_path = scratch / f"{name}.out"
        self.err_path = scratch / f"{name}.err"
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            self.process = subprocess.Popen(
                [BINARY, *self.arguments], stdin=stdin or subprocess.DEVNULL, stdout=out,
                stderr=err, start_new_session=True)

    @property
    def pid(self):
        return self.process.pid

    @property
    def running(self):
        return self.process.poll() is None

    @property
    def out(self):
        return self.out_path.read_bytes()

    @property
    def err(self):
        return self.err_path.read_text(errors="replace")

    def send(self, signal_number):
        if self.running:
            os.kill(self.pid, signal_number)

    def kill(self):
        self.send(signal.SIGKILL)
        self.process.wait()

    def wait(self, seconds=60.0):
        """Waits for the end and returns what was said."""
        try:
            code = self.process.wait(timeout=seconds * SLOW)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGABRT)  # A sanitizer build then shows where it hangs.
            self.process.wait()
            raise AssertionError(f"`recua {' '.join(self.arguments)}` did not end within "
                                 f"{seconds * SLOW:.0f} s; standard error:\n{self.err}") from None
        return Done(self.arguments, code, self.out, self.err.encode())


class Worker(Process):
    def __init__(self, scratch, name, arguments, listen):
        self.port_file = scratch / f"{name}.port"
        self.port_file.unlink(missing_ok=True)
        super().__init__(["worker", "--listen", listen, "--port-file", self.port_file, *arguments],
                         scratch, name)

        def address():
            if not self.running:
                raise AssertionError(f"the worker ended before it listened:\n{self.err}")
            text = self.port_file.read_text() if self.port_file.exists() else ""
            return text.strip() if text.endswith("\n") else ""

        self.address = wait_until(address, f"{self.port_file} of `recua worker`")
        host, _, port = self.address.rpartition(":")
        self.host, self.port = host.strip("[]"), int(port)


class TestCase(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.cleanup = contextlib.ExitStack()
        self.addCleanup(self.cleanup.close)
        self.scratch = pathlib.Path(
            self.cleanup.enter_context(tempfile.TemporaryDirectory(prefix="recua-e2e-")))
        self.cache_home = self.scratch / "cache-home"  # What others left there changes no test.
        self.cleanup.enter_context(mock.patch.dict(os.environ, XDG_CACHE_HOME=str(self.cache_home)))
        self.n_started = 0

    def name(self, kind):
        self.n_started += 1
        return f"{kind}{self.n_started}"

    def start(self, *arguments):
        process = Process(arguments, self.scratch, self.name("run"))
        self.cleanup.callback(process.kill)
        return process

    def recua(self, *arguments, stdin=None, seconds=120.0):
        arguments = [str(argument) for argument in arguments]
        done = subprocess.run([BINARY, *arguments], input=stdin if stdin is not None else b"",
                              capture_output=True, timeout=seconds * SLOW, check=False)
        return Done(arguments, done.returncode, done.stdout, done.stderr)

    def folder_with_another_stories(self):
        """A folder of models whose file of that name differs: same size, same header."""
        folder = self.scratch / "models"
        folder.mkdir()
        data = bytearray(STORIES.read_bytes())
        for at in range(len(data) // 2, len(data) // 2 + 4096, 4):
            data[at] ^= 0x40  # Weights in the middle.
        (folder / STORIES.name).write_bytes(data)
        return folder

    def succeed(self, *arguments, **options):
        done = self.recua(*arguments, **options)
        self.assertEqual(done.code, EXIT_OK, str(done))
        return done

    def fail_with(self, code, words, *arguments, **options):
        """Runs, expects the exit code and a message with all the words (ignoring case)."""
        done = self.recua(*arguments, **options)
        self.check_failure(done, code, words)
        return done

    def check_failure(self, done, code, words):
        self.assertEqual(done.code, code, str(done))
        self.assertIn("recua: ", done.message, str(done))
        for word in words:
            self.assertIn(str(word).lower(), done.message.lower(), str(done))

    def worker(self, *arguments, models=MODELS, cache=None, listen="127.0.0.1:0"):
        """A worker with its own empty cache, unless told otherwise."""
        name = self.name("worker")
        cache = cache or self.scratch / f"{name}-cache"
        where = ["--models", models] if models is not None else []
        worker = Worker(self.scratch, name, [*where, "--cache-dir", cache, *arguments], listen)
        worker.cache = pathlib.Path(cache)
        self.cleanup.callback(worker.kill)
        return worker

    def workers(self, n, **options):
        return [self.worker(**options) for _ in range(n)]

    def check_alive(self, worker):
        self.assertTrue(worker.running, f"the worker died:\n{worker.err}")

    def generate(self, ids, n, *arguments, model=STORIES, seconds=120.0):
        """The object of `run --json` with greedy decoding and an exact cache."""
        return self.succeed("run", "--json", "-m", model, "--prompt-ids", ids_flag(ids), "-n", n,
                            *GREEDY, *F32_CACHE, *arguments, seconds=seconds).json()

    def check_stories(self, *arguments, cases=1):
        """The first cases of stories260K come out exactly."""
        for case in stories()["cases"][:cases]:
            answer = self.generate(case["prompt_ids"], len(case["greedy_ids"]), *arguments)
            self.assertEqual(answer["ids"], case["greedy_ids"])


def addresses(workers):
    return ",".join(worker.address for worker in workers)


def over(workers):
    """Layers for each of them: models as small as those of the tests are planned for one alone."""
    return ["--workers", addresses(workers), "--plan", "layers"]


@functools.lru_cache(maxsize=None)
def stories():
    return json.loads((MODELS / "stories260K.expected.json").read_text())


@functools.lru_cache(maxsize=None)
def stories_long():
    return json.loads((MODELS / "stories260K.long.expected.json").read_text())


@functools.lru_cache(maxsize=None)
def stories_perplexity():
    return json.loads((MODELS / "perplexity.json").read_text())


_synth_folder = None


@functools.lru_cache(maxsize=None)
def random_model(layers=4, dim=256, ffn=768, vocab=1024, type_name="Q4_0", ctx=4096):
    """A random-weight GGUF in a folder of its own, made once per test program."""
    global _synth_folder
    if _synth_folder is None:
        _synth_folder = tempfile.TemporaryDirectory(prefix="recua-e2e-models-")
    folder = pathlib.Path(_synth_folder.name) / f"{layers}-{dim}-{ffn}-{vocab}-{type_name}-{ctx}"
    folder.mkdir()
    path = folder / "random.gguf"
    subprocess.run([BINARY, "synth", path, "--arch", "llama", "--layers", str(layers), "--dim",
                    str(dim), "--ffn", str(ffn), "--heads", "4", "--kv-heads", "2", "--vocab",
                    str(vocab), "--type", type_name, "--ctx", str(ctx), "--seed", "1"],
                   check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return path


def slow_model():
    """Decodes slowly enough that there is time to interrupt it: about 50 MB are read per token."""
    return random_model(layers=8, dim=1024, ffn=3072, type_name="Q4_0")
