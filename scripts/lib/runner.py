"""Runs commands for scripts/test: to a log, with a deadline, never waiting for a terminal."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LOGS = ROOT / "build" / "logs"
JOBS = os.cpu_count() or 2
STARTED = time.monotonic()

# No step of a healthy run comes near it; a hanging one must not hang the whole run.
STEP_SECONDS_MAX = 25 * 60
LINES_AFTER_A_MARK = 25
FAILURE_LINES = 150
TAIL_LINES = 40


class Counts:
    def __init__(self, passed=0, failed=0, skipped=0):
        self.passed, self.failed, self.skipped = passed, failed, skipped

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self):
        text = f"{self.passed} passed, {self.failed} failed"
        return text + (f", {self.skipped} skipped" if self.skipped else "")


def say(text):
    print(text, flush=True)


def header(name):
    elapsed = int(time.monotonic() - STARTED)
    say(f"== [{elapsed // 60:2d}:{elapsed % 60:02d}] {name}")


def log_path(name):
    LOGS.mkdir(parents=True, exist_ok=True)
    return LOGS / f"{name}.log"


def end(process):
    """Ends a command and what it started: asked first, since ninja then ends its compilers."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_number)
            process.wait(timeout=10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            pass


def run(name, command, env=None, tail_on_failure=True, seconds_max=STEP_SECONDS_MAX, append=False):
    """Exit code of the command (124 on timeout); its output goes to build/logs/NAME.log."""
    path = log_path(name)
    full_env = {**os.environ, **(env or {})}
    with path.open("ab" if append else "wb") as log:
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT, env=full_env,
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        try:
            code = process.wait(timeout=seconds_max)
        except subprocess.TimeoutExpired:
            end(process)
            log.write(f"\nstopped after {seconds_max} s\n".encode())
            code = 124
        except BaseException:  # Ctrl-C or SIGTERM: leave nothing running behind.
            end(process)
            raise
    if code != 0 and tail_on_failure:
        say(f"FAILED: {' '.join(str(part) for part in command)} (exit code {code}); "
            f"the end of {path.relative_to(ROOT)}:")
        lines = path.read_text(errors="replace").splitlines()
        sys.stdout.write("".join(f"    {line}\n" for line in lines[-TAIL_LINES:]))
    return code


def check(name, command, **options):
    """One command that counts as one check."""
    return Counts(1, 0) if run(name, command, **options) == 0 else Counts(0, 1)


def build(directory, cmake_arguments, targets=("all",), log=None):
    """Configures and builds build/DIRECTORY, going on past errors so that all are seen."""
    name = log or directory
    configure = ["cmake", "-S", ROOT, "-B", ROOT / "build" / directory, "-G", "Ninja",
                 "-DRECUA_TESTS=ON", *cmake_arguments]
    if run(f"{name}-configure", configure) != 0:
        return Counts(0, 1)
    command = ["ninja", "-C", ROOT / "build" / directory, "-j", JOBS, "-k", "0", *targets]
    return check(f"{name}-build", command)


def count_gtest(path):
    counts = Counts()
    for suite in json.loads(path.read_text())["testsuites"]:
        for case in suite["testsuite"]:
            if case.get("failures"):
                counts.failed += 1
            elif case.get("result") == "SKIPPED":
                counts.skipped += 1
            elif case.get("status") == "RUN":
                counts.passed += 1
    return counts


def ctest_reason(case):
    skipped = case.find("skipped")
    return "" if skipped is None else skipped.get("message", "")


FAILURE_MARKS = ("[  FAILED  ]", ": Failure", "ERROR: ", "FAIL: ", "runtime error",
                 "WARNING: ThreadSanitizer")


def what_failed(lines):
    """Lines that name a failure, each with what follows it: values, a stack, the test before it.

    A failure that does not come again is understood from these lines or not at all.
    """
    wanted = set()
    case = 0
    for i, line in enumerate(lines):
        if "[ RUN      ]" in line:
            case = i
        if any(mark in line for mark in FAILURE_MARKS):
            wanted.add(case)
            wanted.update(range(i, min(i + LINES_AFTER_A_MARK, len(lines))))
    found = [lines[i] for i in sorted(wanted)]
    if len(found) > FAILURE_LINES + TAIL_LINES:
        found = [*found[:FAILURE_LINES], "...", *found[-TAIL_LINES:]]
    return found or lines[-TAIL_LINES:]


def run_ctest(directory, log=None, arguments=(), env=None):
    """Runs ctest in build/DIRECTORY and counts test cases, not programs.

    Each program that understands GTEST_OUTPUT leaves a report; any other counts as one case.
    """
    test_dir = ROOT / "build" / directory
    name = log or directory.replace("/", "-")
    reports = ROOT / "build" / "logs" / f"{name}-reports"
    reports.mkdir(parents=True, exist_ok=True)
    for old in reports.iterdir():
        old.unlink()
    junit = reports / "ctest.xml"
    code = run(f"{name}-ctest",
               ["ctest", "--test-dir", test_dir, "-j", JOBS, "--output-on-failure",
                "--output-junit", junit, *arguments],
               env={"GTEST_OUTPUT": f"json:{reports}/", "GTEST_COLOR": "no", **(env or {})},
               tail_on_failure=False)
    counts = Counts()
    failed_tests = []
    if junit.exists():
        for case in xml.etree.ElementTree.parse(junit).getroot().iter("testcase"):
            report = reports / f"{case.get('name')}.json"
            status = case.get("status")
            inner = count_gtest(report) if report.exists() else Counts()
            if status == "fail":
                failed_tests.append(case.get("name"))
                if inner.failed == 0:  # It crashed, ran out of time or leaked.
                    inner.failed += 1
            elif status == "notrun" and "SKIP" not in ctest_reason(case):
                failed_tests.append(case.get("name"))  # Its program was not built.
                inner.failed += 1
            elif status in ("notrun", "disabled"):
                inner.skipped += 1
            elif not report.exists():
                inner.passed += 1
            counts.add(inner)
    elif code == 0:
        return counts  # A folder without tests.
    if code != 0 and counts.failed == 0:
        counts.failed += 1
    if counts.failed:
        path = log_path(f"{name}-ctest")
        say(f"FAILED: {', '.join(failed_tests) or 'ctest'}; all output in {path.relative_to(ROOT)}")
        lines = path.read_text(errors="replace").splitlines()
        sys.stdout.write("".join(f"    {line}\n" for line in what_failed(lines)))
    return counts
