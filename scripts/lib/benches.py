"""What the scripts that measure have in common: workers on this host, models of random weights, `recua bench`."""

import contextlib
import json
import os
import pathlib
import platform
import statistics
import subprocess
import time
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RECUA = ROOT / "build" / "release" / "bin" / "recua"
BILLION = ["--arch", "llama", "--layers", "16", "--dim", "2048", "--ffn", "8192", "--heads", "32",
           "--kv-heads", "8", "--vocab", "128256", "--rope-theta", "500000", "--tied"]
SMALL = ["--arch", "llama", "--layers", "30", "--dim", "576", "--ffn", "1536", "--heads", "9", "--kv-heads", "3",
         "--vocab", "49152", "--tied"]


class Host(typing.NamedTuple):
    """Where a process runs: an address, and what is put before its command."""
    address: str = "127.0.0.1"
    prefix: tuple = ()


@contextlib.contextmanager
def slow_network(rate):
    """Two network namespaces, each with an Ethernet card of this rate (as tc writes it: 1gbit) to the other. Needs root."""
    names = [f"recua-{os.getpid()}-{rate}-{end}" for end in "ab"]
    hosts = [Host(f"10.99.0.{i + 1}", ("ip", "netns", "exec", name)) for i, name in enumerate(names)]
    call = lambda *command: subprocess.run(command, check=True)
    try:
        for name in names:
            call("ip", "netns", "add", name)
        call("ip", "link", "add", "card", "netns", names[0], "type", "veth", "peer", "name", "card", "netns", names[1])
        for name, host in zip(names, hosts):
            call("ip", "-n", name, "addr", "add", f"{host.address}/24", "dev", "card")
            for device in ("lo", "card"):
                call("ip", "-n", name, "link", "set", device, "up")
            call(*host.prefix, "tc", "qdisc", "add", "dev", "card", "root", "tbf", "rate", rate, "burst", "256kb",
                 "latency", "100ms")
        yield hosts
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def workers(count, models, scratch, links=(), hosts=(Host(),)):
    """Addresses of workers of one thread, with these flags for links, on these hosts in turns; they end with the block."""
    processes, addresses = [], []
    try:
        for i in range(count):
            host = hosts[i % len(hosts)]
            port_file = scratch / f"port{'-'.join(map(str, links))}-{i}"
            port_file.unlink(missing_ok=True)
            processes.append(subprocess.Popen(
                [*host.prefix, RECUA, "worker", "--listen", f"{host.address}:0", "--models", models, "-t", "1", "--quiet",
                 *links, "--port-file", port_file], stderr=subprocess.DEVNULL))
            while not (port_file.exists() and port_file.read_text().endswith("\n")):
                if processes[-1].poll() is not None:
                    raise SystemExit(f"a worker ended with {processes[-1].returncode} before it listened")
                time.sleep(0.005)
            addresses.append(port_file.read_text().strip())
        yield addresses
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def random_model(name, shape):
    """A file of random weights in build/bench, made once."""
    model = ROOT / "build" / "bench" / name
    if not model.exists():
        model.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([RECUA, "synth", model, *shape], check=True)
    return model


def bench_run(model, prompt, generate, more, repetitions, host=Host()):
    """The row of one test as `recua bench` gives it, and what was said on standard error."""
    command = [*host.prefix, RECUA, "bench", "-m", model, "-p", str(prompt), "-n", str(generate), "-r", str(repetitions),
               "-o", "json", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return json.loads(done.stdout)[0], done.stderr


def bench_row(model, prompt, generate, more, repetitions=2):
    return bench_run(model, prompt, generate, more, repetitions)[0]


def bench(model, prompt, generate, more, repetitions=2, host=Host()):
    """Median tokens per second of one test, and what was said on standard error."""
    row, said = bench_run(model, prompt, generate, more, repetitions, host)
    return statistics.median(row["samples_ts"]), said


def commit():
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True,
                          text=True).stdout.strip()


def cpu_name():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def heading():
    return f"{cpu_name()}, {os.cpu_count()} CPUs, commit {commit()}, {time.strftime('%Y-%m-%d')}"
