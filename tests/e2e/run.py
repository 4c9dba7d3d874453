#!/usr/bin/env python3
"""Runs end-to-end tests: run.py --binary build/release/bin/recua [test_module[.Class[.test]]]...

Understands GTEST_OUTPUT=json:DIR/ as GoogleTest does, so that cases are counted alike.
"""

import argparse
import json
import os
import pathlib
import sys
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent


class Result(unittest.TextTestResult):
    """Keeps what a GoogleTest report says about each case."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.cases = []
        self.started = 0.0

    def startTest(self, test):
        super().startTest(test)
        self.started = time.monotonic()

    def keep(self, test, result, failures=()):
        self.cases.append({
            "name": test.id(), "status": "RUN", "result": result,
            "time": f"{time.monotonic() - self.started:.3f}s",
            **({"failures": [{"failure": text} for text in failures]} if failures else {})})

    def addSuccess(self, test):
        super().addSuccess(test)
        self.keep(test, "COMPLETED")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.keep(test, "SKIPPED")

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.keep(test, "COMPLETED", [self.failures[-1][1]])

    def addError(self, test, err):
        super().addError(test, err)
        self.keep(test, "COMPLETED", [self.errors[-1][1]])

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.keep(subtest, "COMPLETED", [str(err[1])])


def write_report(result, name):
    output = os.environ.get("GTEST_OUTPUT", "")
    if not output.startswith("json:"):
        return
    path = pathlib.Path(output.removeprefix("json:"))
    if output.endswith("/"):
        path = path / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"testsuites": [{"name": name, "testsuite": result.cases}]}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=pathlib.Path, required=True, help="the recua to test")
    parser.add_argument("tests", nargs="*", help="modules, classes or cases; all when none")
    arguments = parser.parse_args()
    if not arguments.binary.is_file():
        sys.exit(f"run.py: {arguments.binary} is missing; build the target recua first")
    os.environ["RECUA_BINARY"] = str(arguments.binary.resolve())
    sys.path.insert(0, str(HERE))

    loader = unittest.TestLoader()
    suite = (loader.loadTestsFromNames(arguments.tests) if arguments.tests
             else loader.discover(str(HERE)))
    result = unittest.TextTestRunner(resultclass=Result, verbosity=2).run(suite)
    name = arguments.tests[0].split(".")[0].replace("test_", "e2e_") if arguments.tests else "e2e"
    write_report(result, name)
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
