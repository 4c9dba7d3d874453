"""Runs scenarios: which there are, on which machines, with which deadlines, and what came out.

Machines of a topology are booted once and do their scenarios one after the other. They are booted
again after a scenario that ends a machine or does not come back.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import time

from host import captures
from host.image import LAB
from host.machine import Lab, MachineError

ROOT = LAB.parent
SCENARIOS = LAB / "scenarios"
RESULTS = ROOT / "build" / "lab"
GOLDEN = ROOT / "tests" / "golden" / "models"
# Between the deadline inside and the host's: the guest has this long to say what happened.
GRACE_SECONDS = 15
TAIL_LINES = 60


@dataclasses.dataclass
class Scenario:
    """A file of lab/scenarios. Its first line says what it shows; `# key: value` lines follow."""
    name: str
    about: str
    suite: str = "all"        # "smoke" is in all, too; "bench" is in neither.
    topology: str = "one"
    deadline: int = 60        # Seconds.
    check: str = ""           # A function of captures.py that looks at its files afterwards.
    dies: str = ""            # The machine that does not survive it.

    @staticmethod
    def load(path):
        about, *lines = path.read_text().splitlines()
        scenario = Scenario(path.name, about.removeprefix("# "))
        for line in lines:
            setting = re.match(r"# ([a-z]+): (.*)", line)
            if setting is None:
                break
            key, value = setting.groups()
            if not hasattr(scenario, key):
                raise MachineError(f"{path}: unknown key '{key}'")
            setattr(scenario, key, type(getattr(scenario, key))(value))
        return scenario


@dataclasses.dataclass
class Outcome:
    scenario: Scenario
    seconds: float
    why_failed: str = ""


def scenarios():
    found = [Scenario.load(path) for path in sorted(SCENARIOS.iterdir())]
    # Those that need no new machines come first, and what ends a machine comes last.
    return sorted(found, key=lambda each: (each.topology, bool(each.dies), each.suite != "smoke", each.name))


def write_golden(folder):
    """The expected tokens as shell variables, since the guest reads no JSON."""
    cases = json.loads((GOLDEN / "stories260K.expected.json").read_text())["cases"]
    long = json.loads((GOLDEN / "stories260K.long.expected.json").read_text())["cases"][0]
    perplexity = json.loads((GOLDEN / "perplexity.json").read_text())["results"]
    lines = []
    for index, case in enumerate(cases):
        lines.append(f"PROMPTS[{index}]={_ids(case['prompt_ids'])} GREEDY[{index}]={_ids(case['greedy_ids'])}")
    lines.append(f"LONG_PROMPT={_ids(long['prompt_ids'])} LONG_GREEDY={_ids(long['greedy_ids'])}")
    lines += [f"NLL[{row['ctx']}]={row['nll']}" for row in perplexity]
    (folder / "golden.sh").write_text("\n".join(lines) + "\n")


def _ids(ids):
    return ",".join(map(str, ids))


class Suite:
    def __init__(self, image, binaries, say, variables=None):
        self.image, self.binaries, self.say = image, binaries, say
        self.variables = dict(variables or {})
        self.outcomes = []
        self._lab = None

    def run(self, chosen):
        shutil.rmtree(RESULTS, ignore_errors=True)
        RESULTS.mkdir(parents=True)
        try:
            for scenario in chosen:
                self._run_one(scenario)
        finally:
            self._end_lab()

    def _run_one(self, scenario):
        began = time.monotonic()
        try:
            lab = self._lab_for(scenario.topology)
            began = time.monotonic()
            results = lab.run(f"scenario {scenario.name} {scenario.deadline}",
                              scenario.deadline + GRACE_SECONDS)
        except MachineError as error:
            self._end_lab()
            self._report(Outcome(scenario, time.monotonic() - began, f"the lab failed: {error}"))
            return
        outcome = Outcome(scenario, time.monotonic() - began)
        folder = self._keep_results(lab, scenario)
        outcome.why_failed = self._verdict(lab, scenario, folder, results)
        if scenario.dies or any(code is None for code, _ in results):
            if outcome.why_failed:
                for machine in lab.machines:
                    (folder / f"console.{machine.node}").write_text(machine.console())
            self._end_lab()
        self._report(outcome, folder)

    def _verdict(self, lab, scenario, folder, results):
        for machine, (code, _) in zip(lab.machines, results):
            if machine.node == scenario.dies:
                if code is not None:
                    return f"machine {machine.node} did not die"
            elif code is None:
                return f"machine {machine.node} did not answer within {scenario.deadline} s"
            elif code == 124 or code == 137:
                return f"on {machine.node}: not done within {scenario.deadline} s"
            elif code != 0:
                return f"on {machine.node}: {_first_failure(folder / machine.node, code)}"
        if scenario.check:
            return getattr(captures, scenario.check)(folder)
        return ""

    def _lab_for(self, topology):
        if self._lab is not None and self._lab.topology != topology:
            self._end_lab()
        if self._lab is None:
            began = time.monotonic()
            lab = Lab(self.image, topology=topology, project=ROOT, binaries=self.binaries,
                      variables=self.variables)
            lab.__enter__()
            self._lab = lab
            for machine in lab.machines:
                write_golden(machine.ctl)
            self.say(f"booted topology {topology} in {time.monotonic() - began:.1f} s")
        return self._lab

    def _end_lab(self):
        if self._lab is not None:
            self._lab.__exit__()
            self._lab = None

    def _keep_results(self, lab, scenario):
        """build/lab/SCENARIO/NODE: everything that the scenario left."""
        folder = RESULTS / scenario.name
        for machine in lab.machines:
            source = machine.ctl / "results" / f"{scenario.name}.{machine.node}"
            if source.exists():
                shutil.copytree(source, folder / machine.node)
        return folder

    def _report(self, outcome, folder=None):
        self.outcomes.append(outcome)
        verdict = "FAILED" if outcome.why_failed else "passed"
        self.say(f"{verdict} {outcome.scenario.name} ({outcome.seconds:.1f} s)"
                 + (f": {outcome.why_failed}" if outcome.why_failed else ""))
        if outcome.why_failed and folder is not None:
            self._show_logs(folder)

    def _show_logs(self, folder):
        """The logs of both ends."""
        for path in sorted(folder.rglob("*")):
            if path.name == "log" or path.suffix == ".err" or path.stem == "console":
                lines = path.read_text(errors="replace").splitlines()
                self.say(f"  -- {path.relative_to(ROOT)}")
                for line in lines[-TAIL_LINES:]:
                    self.say(f"     {line[:300]}")

    @property
    def n_failed(self):
        return sum(bool(outcome.why_failed) for outcome in self.outcomes)

    def table(self):
        lines = ["| scenario | shows | seconds | |", "| --- | --- | --- | --- |"]
        for outcome in self.outcomes:
            lines.append(f"| {outcome.scenario.name} | {outcome.scenario.about} | {outcome.seconds:.1f} | "
                         f"{'FAILED' if outcome.why_failed else 'passed'} |")
        return "\n".join(lines)


def _first_failure(folder, code):
    log = folder / "log"
    if log.exists():
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("FAILED: "):
                return line.removeprefix("FAILED: ")
    return f"exit code {code}"


def choose(names=None, suite=None):
    """Scenarios by name or of a suite; None and the unknown name when there is none such."""
    found = scenarios()
    if names:
        known = {each.name for each in found}
        for name in names:
            if name not in known:
                raise MachineError(f"no scenario '{name}'; scripts/lab list names them")
        return [each for each in found if each.name in names]
    return [each for each in found if each.suite == suite or (suite == "all" and each.suite == "smoke")]


def binary_path():
    return pathlib.Path(os.environ.get("RECUA_BINARY") or ROOT / "build" / "release" / "bin" / "recua")
