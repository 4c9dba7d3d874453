"""scripts/lab: see lab/README.md."""

import argparse
import os
import pathlib
import shlex
import signal
import sys

sys.path.insert(0, os.path.dirname(__file__))
from host.image import Image, ImageError, missing_tools  # noqa: E402
from host.machine import Lab, MachineError  # noqa: E402
from host import measurements  # noqa: E402
from host.suite import RESULTS, Suite, binary_path, choose, scenarios  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXIT_LAB_FAILED, EXIT_TIMEOUT = 125, 124
# tshark only for checking what was captured.
SUITE_TOOLS = ["tshark"]


def say(text):
    print(text, flush=True)


def complain(text):
    print(f"lab: {text}", file=sys.stderr, flush=True)


def prepare(options):
    Image(say=complain).prepare(force=options.force)
    return 0


def clean(_):
    Image().clean()
    return 0


def run(options):
    image = Image(say=complain)
    image.prepare()
    share = str(pathlib.Path(options.share).resolve()) if options.share else None
    workdir = os.getcwd() if share and f"{os.getcwd()}/".startswith(f"{share}/") else share
    variables = dict(item.split("=", 1) for item in options.env)
    with Lab(image, topology=options.topology, mtu=options.mtu, memory_mib=options.mem,
             n_cpus=options.smp, share=share, workdir=workdir, variables=variables) as lab:
        for machine in lab.machines:
            (machine.ctl / "command").write_text(shlex.join(options.command) + "\n")
        results = lab.run("command", options.timeout)
        if options.verbose or any(code is None for code, _ in results):
            for machine in lab.machines:
                sys.stderr.write(machine.console())
    for machine, (code, seconds) in zip(lab.machines, results):
        if code is None:
            complain(f"machine {machine.node}: no end within {options.timeout} s")
        elif options.verbose:
            complain(f"machine {machine.node}: exit {code} after {seconds:.1f} s")
    codes = [EXIT_TIMEOUT if code is None else code for code, _ in results]
    return next((code for code in codes if code), 0)


def list_scenarios(_):
    for each in scenarios():
        say(f"{each.name:20s} {each.suite:6s} topology {each.topology:4s} {each.deadline:4d} s  {each.about}")
    return 0


def run_suite(options):
    chosen = choose(names=getattr(options, "names", None), suite=options.name)
    why_not = why_skipped()
    if why_not:
        required = options.require or os.environ.get("CI") == "true"
        say(f"skipped: {why_not}")
        say(f"0 passed, 1 failed, {len(chosen)} skipped" if required else
            f"0 passed, 0 failed, {len(chosen)} skipped")
        return 1 if required else 0
    binary = binary_path()
    if not binary.exists():
        raise ImageError(f"{binary} is not there: build it, or name another with RECUA_BINARY")
    image = Image(say=complain)
    image.prepare()
    image.check_libraries(binary)
    suite = Suite(image, [binary], say)
    suite.run(chosen)
    say(suite.table())
    say(f"{len(suite.outcomes) - suite.n_failed} passed, {suite.n_failed} failed")
    return 1 if suite.n_failed else 0


def bench(options):
    binaries = [binary_path(), binary_path().parent / "raw_verbs"]
    absent = [path for path in binaries if not path.exists()]
    if absent:
        raise ImageError(f"{absent[0]} is not there: build it with -DRECUA_BENCH=ON")
    image = Image(say=complain)
    image.prepare()
    suite = Suite(image, binaries, say, variables={"BENCH_PAIRS": options.pairs})
    suite.run(choose(names=["bench"]))
    if suite.n_failed:
        return 1
    say(measurements.table(measurements.read_samples(RESULTS / "bench" / "a" / "samples")))
    return 0


def why_skipped():
    missing = missing_tools(SUITE_TOOLS)
    if missing:
        return f"{', '.join(missing)} missing; scripts/setup --dev installs what the lab needs"
    if os.uname().machine != "x86_64":
        return f"the machines are x86-64, this host is {os.uname().machine}"
    return ""


def parse_arguments():
    parser = argparse.ArgumentParser(prog="scripts/lab", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)

    command = commands.add_parser("prepare", help="download packages and make the image (about 20 s, once)")
    command.add_argument("--force", action="store_true", help="even when it is there")
    command.set_defaults(function=prepare)

    command = commands.add_parser("run", help="boot, run a command in the guest, exit with its code")
    command.add_argument("--topology", choices=["one", "two"], default="one",
                         help="one machine with both devices, or two with one each")
    command.add_argument("--share", metavar="DIR", help="folder that the guest sees at the same path, writable")
    command.add_argument("--timeout", type=float, default=120, metavar="SECONDS")
    command.add_argument("--mtu", type=int, default=4200, metavar="BYTES",
                         help="of the link: 4200 gives an RDMA MTU of 4096, 1500 one of 1024")
    command.add_argument("--mem", type=int, default=768, metavar="MIB", help="memory of each machine")
    command.add_argument("--smp", type=int, default=1, metavar="N", help="CPUs of each machine")
    command.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    command.add_argument("--verbose", action="store_true", help="show the console and times")
    command.add_argument("command", nargs="+", metavar="-- COMMAND")
    command.set_defaults(function=run)

    for name, about in (("smoke", "the scenarios that every change has to pass"), ("all", "all scenarios"),
                        ("scenario", "some by name")):
        command = commands.add_parser(name, help=about)
        if name == "scenario":
            command.add_argument("names", nargs="+", metavar="NAME")
        command.add_argument("--require", action="store_true",
                             help="fail where the lab cannot run, as with CI=true, instead of skipping")
        command.set_defaults(function=run_suite)

    command = commands.add_parser("bench", help="RDMA links beside bare verbs and perftest, in turns")
    command.add_argument("--pairs", type=int, default=21, metavar="N", help="rounds")
    command.set_defaults(function=bench)

    command = commands.add_parser("list", help="what scenarios there are")
    command.set_defaults(function=list_scenarios)

    command = commands.add_parser("clean", help="remove the cache")
    command.set_defaults(function=clean)
    return parser.parse_args()


def main():
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that no machine stays behind.
    try:
        if options.name in ("prepare", "run") and missing_tools():
            raise ImageError(f"{', '.join(missing_tools())} missing")
        return options.function(options)
    except (ImageError, MachineError) as error:
        complain(error)
        if options.function is run_suite:
            say("0 passed, 1 failed")
        return EXIT_LAB_FAILED


if __name__ == "__main__":
    sys.exit(main())
