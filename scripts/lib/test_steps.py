"""The steps of scripts/test. Each is independent of the others' success; all are counted."""

import argparse
import concurrent.futures
import os
import re
import signal
import subprocess
import sys

sys.path.insert(0, os.path.dirname(__file__))
from runner import JOBS, ROOT, Counts, build, check, header, log_path, run, run_ctest, say  # noqa: E402

# Line numbers are all that a sanitizer's report shows; the rest of -g costs a fifth of the build.
CLANG = ["-DCMAKE_CXX_COMPILER=clang++-19", "-DCMAKE_C_COMPILER=clang-19",
         "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
         "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O2 -gline-tables-only -DNDEBUG"]
# One tree for tests, fuzzing and clang-tidy.
ASAN = [*CLANG, "-DRECUA_SANITIZE=address,undefined,fuzzer-no-link", "-DRECUA_FUZZ=ON"]
# Where threads meet. TSan takes long, so the others wait for --full.
THREADED_FOLDERS = ["sys", "net", "rpc", "collective", "cluster"]
FUZZ_SECONDS = 20
FUZZ_SECONDS_FULL = 600
# Without a branch point to compare with, clang-tidy looks at the files of this many commits.
TIDY_COMMITS = 10
# CPUs that qemu-user plays, each with the best instruction set that it has: kernels meet no more
# than they say they need, and a set that is not found fails its run.
ARM_CPUS = {"cortex-a57": "neon", "neoverse-n1": "dotprod", "max": "i8mm"}
ARM_TESTS = ["kernels_test", "sys_test", "golden_models_test"]
# recua itself takes longer to build than these tests: it waits for --full.
ARM_TESTS_FULL = ["base_test", "gguf_test", "tokenizer_test", "dequantize_test", "cpu_device_test",
                  "row_invariance_test", "train_operators_test"]
ARM_E2E = ["test_local.Tokens.test_gives_the_greedy_tokens_of_the_reference"]
SANITIZER_ENV = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "second_deadlock_stack=1",
}


def format_step(_):
    return check("format", ["scripts/format", "--check"])


def includes_step(_):
    return check("includes", ["scripts/check-includes"])


def optional_parts(tree):
    """Tests skip what was not built in; here all of it is wanted, as scripts/setup installs it."""
    name = f"{tree}-version"
    run(name, [ROOT / "build" / tree / "bin" / "recua", "version", "--json"])
    output = log_path(name).read_text(errors="replace")
    if re.search(r'"rdma":"libibverbs [^"]*"', output) and re.search(r'"topology":"hwloc [^"]*"', output):
        return Counts(1, 0)
    say(f"FAILED: recua was built without libibverbs or hwloc: {output}")
    return Counts(0, 1)


def release_step(_):
    counts = build("release", ["-DCMAKE_BUILD_TYPE=Release"])
    counts.add(optional_parts("release"))
    counts.add(run_ctest("release"))
    return counts


def debug_step(_):
    counts = build("debug", ["-DCMAKE_BUILD_TYPE=Debug", "-DRECUA_BENCH=ON"])
    counts.add(run_ctest("debug"))
    return counts


def asan_step(_):
    counts = build("asan-ubsan", ASAN)
    counts.add(run_ctest("asan-ubsan", env=SANITIZER_ENV))
    return counts


def tsan_step(options):
    folders = [f"src/{folder}" for folder in THREADED_FOLDERS
               if (ROOT / "src" / folder / "CMakeLists.txt").exists()]
    targets = ["all"] if options.full else [f"{folder}/all" for folder in folders]
    counts = build("tsan", [*CLANG, "-DRECUA_SANITIZE=thread"], targets)
    for directory in ["tsan"] if options.full else [f"tsan/{folder}" for folder in folders]:
        counts.add(run_ctest(directory, env=SANITIZER_ENV))
    return counts


def fuzz_step(options):
    sources = sorted((ROOT / "tests" / "fuzz").glob("*_fuzz.cc"))
    if not sources:
        return Counts(0, 0, 1)
    counts = build("asan-ubsan", ASAN, ["tests/fuzz/all"], log="fuzz")
    seconds = max(3, (FUZZ_SECONDS_FULL if options.full else FUZZ_SECONDS) // len(sources))
    for source in sources:
        name = source.stem
        binary = ROOT / "build" / "asan-ubsan" / "bin" / name
        if not binary.exists():
            say(f"FAILED: {binary.relative_to(ROOT)} was not built")
            counts.failed += 1
            continue
        found = ROOT / "build" / "found" / name
        found.mkdir(parents=True, exist_ok=True)
        kept = ROOT / "tests" / "fuzz" / "corpus" / name.removesuffix("_fuzz")
        command = [binary, f"-max_total_time={seconds}", "-max_len=4096", "-rss_limit_mb=2048",
                   "-timeout=10", "-verbosity=0", f"-artifact_prefix={found.parent}/{name}-", found]
        if kept.is_dir():
            command.append(kept)
        counts.add(check(f"fuzz-{name}", command, env=SANITIZER_ENV, seconds_max=seconds + 120))
    return counts


def git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def changed_files():
    """Paths changed since the branch left origin/main, else in the last commits; None when unknown."""
    head = git("rev-parse", "HEAD")
    base = git("merge-base", "HEAD", "origin/main")
    if base is None or base == head:
        base = git("rev-parse", f"HEAD~{TIDY_COMMITS}")
    if base is None:
        return None
    names = git("diff", "--name-only", base)
    return None if names is None else set(names.splitlines())


def tidy_sources(options):
    """The .cc files to look at: changed ones, and for a changed header one file that shows it."""
    sources = sorted(path for folder in ("src", "tests") for path in (ROOT / folder).rglob("*.cc"))
    changed = None if options.full else changed_files()
    if changed is None:
        return sources
    chosen = {path for path in sources if path.relative_to(ROOT).as_posix() in changed}
    for name in sorted(changed):
        if name.endswith(".h") and (ROOT / name).exists():
            include = f'#include "{name.removeprefix("src/")}"'
            own = (ROOT / name).with_suffix(".cc")
            if own in chosen:
                continue
            users = [own] if own.exists() else [
                path for path in sources if include in path.read_text(errors="replace")]
            chosen.update(users[:1])
    return sorted(chosen)


def tidy_step(options):
    database = ROOT / "build" / "asan-ubsan"
    if not (database / "compile_commands.json").exists():
        counts = build("asan-ubsan", ASAN, log="tidy")
        if counts.failed:
            return counts
    known = (database / "compile_commands.json").read_text()
    sources = [path for path in tidy_sources(options) if str(path) in known]
    pattern = re.compile(r".*:\d+:\d+: (error|warning): .*")

    def tidy(path):
        done = subprocess.run(["clang-tidy-19", "-p", database, "--quiet", path], cwd=ROOT,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    counts = Counts()
    with log_path("tidy").open("w") as log, concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        for path, (code, output) in zip(sources, pool.map(tidy, sources)):
            log.write(f"== {path.relative_to(ROOT)}\n{output}\n")
            counts.add(Counts(1, 0) if code == 0 else Counts(0, 1))
            if code != 0:
                found = [line for line in output.splitlines() if pattern.match(line)]
                say(f"FAILED: clang-tidy {path.relative_to(ROOT)}")
                for line in found or output.splitlines()[-5:]:
                    say(f"    {line.replace(str(ROOT) + '/', '')}")
    say(f"clang-tidy looked at {len(sources)} files")
    return counts


def counted(name, command):
    """A command whose last line is "N passed, N failed[, N skipped]"."""
    code = run(name, command)
    lines = log_path(name).read_text(errors="replace").splitlines() or [""]
    match = re.match(r"(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", lines[-1])
    if match is None:
        return Counts(0, 1)
    counts = Counts(*(int(number or 0) for number in match.groups()))
    if code != 0 and counts.failed == 0:
        counts.failed = 1
    return counts


def aarch64_set(recua, cpu, best):
    """Whether recua finds the instruction set that this CPU has."""
    code = run(f"aarch64-{cpu}-version", [recua, "version", "--json"], env={"QEMU_CPU": cpu})
    output = log_path(f"aarch64-{cpu}-version").read_text(errors="replace")
    if code == 0 and f'"instruction_set":"{best}"' in output:
        return Counts(1, 0)
    say(f"FAILED: as {cpu}, recua version should name the instruction set {best}: {output}")
    return Counts(0, 1)


def aarch64_cpu(cpu, best, tests, recua):
    """The tests, and recua unless it is None, as one kind of CPU with the best instruction set that it has."""
    counts = aarch64_set(recua, cpu, best) if recua else Counts()
    # Cases of other sets belong to the other CPUs, those of the scalar one to the last.
    others = [name for name in ["scalar", *ARM_CPUS.values()]
              if name != best and (name, cpu) != ("scalar", "max")]
    env = {"QEMU_CPU": cpu, "RECUA_INSTRUCTION_SET": best,
           "GTEST_FILTER": "-" + ":".join(f"*/{name}" for name in others)}
    counts.add(run_ctest("aarch64", log=f"aarch64-{cpu}", env=env,
                         arguments=["-R", f"^({'|'.join(tests)})$"]))
    if recua:
        counts.add(check(f"aarch64-{cpu}-e2e",
                         ["python3", "-B", "tests/e2e/run.py", "--binary", recua, *ARM_E2E],
                         env={"QEMU_CPU": cpu}))
    return counts


def recua_in_qemu():
    """recua for whoever starts it as a program of its own."""
    build_dir = ROOT / "build" / "aarch64"
    recua = build_dir / "recua-in-qemu"
    recua.write_text("#!/bin/sh\nexec qemu-aarch64-static -L /usr/aarch64-linux-gnu "
                     f'"{build_dir}/bin/recua" "$@"\n')
    recua.chmod(0o755)
    return recua


def aarch64_step(options):
    """Cross-built for 64-bit Arm and run by qemu-user: whether it is right, not how fast."""
    counts = check("aarch64-setup", ["scripts/setup-aarch64"])
    if counts.failed:
        return counts
    tests = ARM_TESTS + (ARM_TESTS_FULL if options.full else [])
    counts.add(build("aarch64", [f"-DCMAKE_TOOLCHAIN_FILE={ROOT}/cmake/aarch64.cmake",
                                 "-DCMAKE_BUILD_TYPE=Release", "-DRECUA_VERBS=OFF"],
                     [*tests, *(["recua"] if options.full else [])]))
    if counts.failed:
        return counts
    recua = recua_in_qemu() if options.full else None
    for cpu, best in ARM_CPUS.items():
        counts.add(aarch64_cpu(cpu, best, tests, recua))
    return counts


def interop_step(_):
    return counted("interop", ["scripts/interop"])


def lab_step(options):
    """RDMA between virtual machines, with the release build."""
    counts = counted("lab", ["scripts/lab", "all" if options.full else "smoke"])
    for line in log_path("lab").read_text(errors="replace").splitlines():
        if line.startswith(("passed ", "skipped: ")):
            say(f"   {line}")
    return counts


# name -> (what it does, function, in --quick, in the default run)
STEPS = {
    "format": ("clang-format agrees with every file", format_step, False, True),
    "includes": ("the include graph holds", includes_step, False, True),
    "release": ("release build and all tests", release_step, True, True),
    "lab": ("RDMA between virtual machines, release build", lab_step, False, True),
    "aarch64": ("64-bit Arm: cross-built, run by qemu-user", aarch64_step, False, True),
    "asan": ("address and undefined-behaviour sanitizers, all tests", asan_step, False, True),
    "tsan": ("thread sanitizer", tsan_step, False, True),
    "fuzz": ("fuzzing", fuzz_step, False, True),
    "tidy": ("clang-tidy", tidy_step, False, True),
    "debug": ("debug build and all tests", debug_step, False, False),
    "interop": ("files we write, read by another implementation", interop_step, False, False),
}


def main():
    parser = argparse.ArgumentParser(prog="scripts/test")
    parser.add_argument("--quick", action="store_true", help="only the release build and its tests")
    parser.add_argument("--full", action="store_true", help="everything, on all files")
    parser.add_argument("--only", action="append", choices=list(STEPS), help="run this step")
    parser.add_argument("--list", action="store_true", help="name the steps")
    options = parser.parse_args()
    if options.list:
        for name, (about, *_) in STEPS.items():
            print(f"{name:10s} {about}")
        return 0

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that steps end what they started.
    total = Counts()
    for name, (about, function, quick, default) in STEPS.items():
        wanted = (name in options.only if options.only else
                  options.full or (quick if options.quick else default))
        if not wanted:
            continue
        header(f"{name}: {about}")
        try:
            counts = function(options)
        except Exception as error:  # A broken step is one failure; the others still run.
            say(f"FAILED: {name}: {type(error).__name__}: {error}")
            counts = Counts(0, 1)
        say(f"   {counts}")
        total.add(counts)
    header("done")
    say(str(total))
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
