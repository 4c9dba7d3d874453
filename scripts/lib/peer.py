"""The engine that scripts/bench-peer compares with: installs the npm package and drives scripts/lib/peer.mjs."""

import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys

from benches import ROOT

VERSION = "3.22.1"
FOLDER = ROOT / "build" / "peer" / VERSION
BUILD = f"linux-{ {'x86_64': 'x64', 'aarch64': 'arm64'}.get(platform.machine(), platform.machine()) }"
SCRIPT = pathlib.Path(__file__).resolve().parent / "peer.mjs"


def install(kernels):
    """The folder of the installed package; with kernels ("haswell"), of a copy that has only this build of them."""
    package = FOLDER / "all" / "node_modules" / "node-llama-cpp"
    if not package.exists():
        for program in ("node", "npm"):
            if shutil.which(program) is None:
                raise SystemExit(f"bench-peer needs {program}, which is not on the PATH (Debian: apt-get install npm)")
        shutil.rmtree(FOLDER, ignore_errors=True)
        (FOLDER / "all").mkdir(parents=True)
        (FOLDER / "all" / "package.json").write_text('{"private": true}\n')
        # Optional packages are builds for GPUs and other machines: only this one's is wanted.
        subprocess.run(["npm", "install", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--silent",
                        f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/{BUILD}@{VERSION}"],
                       cwd=FOLDER / "all", check=True)
    if kernels is None:
        return package
    libraries = lambda folder: (folder / "node_modules" / "@node-llama-cpp" / BUILD).rglob("libggml-cpu-*.so")
    known = sorted(library.stem.removeprefix("libggml-cpu-") for library in libraries(FOLDER / "all"))
    if kernels not in known:
        raise SystemExit(f"--kernels {kernels}: the peer has {', '.join(known)}")
    if not (FOLDER / kernels).exists():
        scratch = FOLDER / f"{kernels}.part"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(FOLDER / "all", scratch, symlinks=True)
        for library in list(libraries(scratch)):
            if library.stem != f"libggml-cpu-{kernels}":
                library.unlink()
        scratch.rename(FOLDER / kernels)
    return FOLDER / kernels / "node_modules" / "node-llama-cpp"


class Peer:
    """One process of the peer with one model loaded; ends with the block."""

    def __init__(self, package, model, threads):
        self.threads, self.told = threads, False
        self.process = subprocess.Popen(["node", SCRIPT, package, model, str(threads)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        try:
            self.loaded = self._answer()
        except SystemExit:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer ended with {self.process.wait()} (what it said is above)")
        return json.loads(line)

    def measure(self, test, repetitions):
        """Seconds per repetition by the engine's own count and from outside, and cores kept busy.

        The peer starts its threads anew for every step, and the ordinary scheduler often puts two of them on one
        processor until the step is nearly over. Under SCHED_RR a new thread goes to an idle processor, but the
        kernel keeps 5 % of the time from such threads. So short steps are measured both ways and the faster counts.
        """
        answers = [self._ask(test, repetitions)]
        if test["prompt"] == 0 and self.threads > 1 and self._schedule(os.SCHED_RR, 1):
            answers.append(self._ask(test, repetitions))
            self._schedule(os.SCHED_OTHER, 0)
        return min(answers, key=lambda answer: statistics.median(answer["engine"]))

    def _schedule(self, policy, priority):
        """Whether all threads now are scheduled so, and with them those that they start."""
        try:
            for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
                os.sched_setscheduler(int(task.name), policy, os.sched_param(priority))
        except PermissionError:
            if not self.told:
                print("the peer cannot be scheduled by SCHED_RR here (that takes root): its decode may look worse than "
                      "it is", file=sys.stderr)
            self.told = True
            return False
        return True

    def _ask(self, test, repetitions):
        self.process.stdin.write(json.dumps({**test, "repetitions": repetitions}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        step = test["parallel"] if test["prompt"] == 0 else min(test["prompt"], 512)
        wrong = []
        if answer["threads"] != self.threads:
            wrong.append(f"{answer['threads']} threads instead of {self.threads}")
        if set(answer["batches"]) != {str(step)}:
            wrong.append(f"steps of {', '.join(answer['batches'])} tokens instead of {step}")
        if max(answer["cores"]) > self.threads + 0.3:
            wrong.append(f"{max(answer['cores']):.2f} processors busy with {self.threads} thread(s)")
        if wrong:
            raise SystemExit(f"the peer did not measure what was asked for: {'; '.join(wrong)}")
        return answer
