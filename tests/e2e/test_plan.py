"""recua plan: what it predicts before anything is loaded, for described machines and for real workers."""

import json
import socket
import unittest
import xml.etree.ElementTree

from harness import EXIT_FAILURE, EXIT_USAGE, ROOT, STORIES, TestCase, addresses, random_model

EXAMPLES = ROOT / "docs" / "planning"
LARGE = EXAMPLES / "dense-70b.json"


def not_loopback():
    """An address of this machine that others could reach, if there is one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # Sends nothing.
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") else address


def machines(n, memory_gib=64, latency_us=5, gbit=100, transport="rdma"):
    return {
        "machines": [{"name": "box", "count": n, "memory_gib": memory_gib, "memory_gb_per_s": 100,
                      "matmul_gmac_per_s": 2000}],
        "default_link": {"transports": [
            {"transport": transport, "latency_us": latency_us, "gbit_per_s": gbit}]},
    }


class Plan(TestCase):
    def described(self, name="cluster.json", **options):
        path = self.scratch / name
        path.write_text(json.dumps(machines(**options)))
        return path

    def plan(self, *arguments, model=LARGE):
        return self.succeed("plan", "-m", model, "--json", *arguments).json()

    def test_predicts_for_described_machines(self):
        answer = self.plan("--simulate", self.described(n=4))
        best = answer["plans"][0]
        self.assertEqual(best["kind"], "tensor 4")
        self.assertEqual(best["stages"][0]["layers"], [0, 80])
        self.assertEqual([rank["machine"] for rank in best["stages"][0]["ranks"]],
                         ["box-0", "box-1", "box-2", "box-3"])
        for plan in answer["plans"]:
            for key in ("first_token_seconds", "tokens_per_second", "answer_seconds"):
                self.assertGreater(plan["prediction"][key], 0)
        self.assertEqual(answer["plans"],
                         sorted(answer["plans"], key=lambda p: p["prediction"]["answer_seconds"]))
        text = self.succeed("plan", "-m", LARGE, "--simulate", self.described(n=4)).text
        for words in ("tensor 4", "one machine", "first token", "why:", answer["reason"]):
            self.assertIn(words, text)

    def test_slow_links_are_not_worth_it(self):
        slow = self.described(n=2, latency_us=50000, gbit=0.001, transport="tcp")
        answer = self.plan("--simulate", slow)
        self.assertEqual(answer["plans"][0]["kind"], "one machine")
        self.assertIn("fewer machines are faster: box-1 left out", answer["warnings"][0])
        forced = self.plan("--simulate", slow, "--use-all")
        self.assertEqual(forced["plans"][0]["n_machines"], 2)
        self.assertIn("times as long as one machine would", forced["warnings"][0])

    def test_a_plan_file_comes_back_and_is_judged(self):
        cluster, saved = self.described(n=4), self.scratch / "plan.json"
        first = self.plan("--simulate", cluster, "--pp", 2, "--tp", 2, "--save", saved)
        again = self.plan("--simulate", cluster, "--plan", saved)
        self.assertEqual(again["plans"][0]["stages"], first["plans"][0]["stages"])
        self.assertEqual(again["plans"][0]["prediction"], first["plans"][0]["prediction"])
        self.fail_with(EXIT_USAGE, [saved, "n_layers 80 (this one has 5)", "hidden_size"], "plan",
                       "-m", STORIES, "--simulate", cluster, "--plan", saved)
        smaller = self.described("smaller.json", n=3)
        self.fail_with(EXIT_USAGE, ["box-3", "not among the machines"], "plan", "-m", LARGE,
                       "--simulate", smaller, "--plan", saved)

    def test_overrides_are_followed(self):
        cluster = self.described(n=8)
        self.assertEqual(self.plan("--simulate", cluster, "--tp", 4)["plans"][0]["kind"][-8:],
                         "tensor 4")
        split = self.plan("--simulate", self.described(n=2), "--pp", 2, "-ts", "3,1")
        stages = split["plans"][0]["stages"]
        self.assertEqual([stage["layers"] for stage in stages], [[0, 60], [60, 80]])

    def test_draws_timelines(self):
        svg = self.scratch / "timeline.svg"
        self.plan("--simulate", self.described(n=4), "--pp", 4, "--prompt", 2048, "--streams", 4,
                  "--svg", svg)
        root = xml.etree.ElementTree.parse(svg).getroot()
        text = " ".join(root.itertext())
        for words in ("box-0", "box-3", "A prompt of 2048 tokens", "Decode", "computing"):
            self.assertIn(words, text)

    def test_takes_a_thousand_machines(self):
        for model in ("dense-70b.json", "moe-235b.json"):
            for cluster in ("boxes-rdma.json", "servers-tcp.json"):
                with self.subTest(model=model, cluster=cluster):
                    rows = self.plan("--simulate", EXAMPLES / cluster, "--scale", "1,4,64,1000",
                                     "--streams", 16, model=EXAMPLES / model)["scale"]
                    fitting = [row["prediction"]["answer_seconds"] for row in rows if row["fits"]]
                    self.assertGreaterEqual(len(fitting), 3)
                    self.assertEqual(fitting, sorted(fitting, reverse=True))

    def test_says_what_is_missing(self):
        self.fail_with(EXIT_FAILURE, ["box-0 has 4.0 GiB and would need", "box-1", "in all"],
                       "plan", "-m", LARGE, "--simulate", self.described(n=2, memory_gib=4))

    def test_wrong_usage_is_explained(self):
        cluster = self.described(n=2)
        simulate = ["--simulate", cluster]
        broken = self.scratch / "broken.json"
        broken.write_text('{"machines": [{"name": "x"}]}')
        for words, arguments in (
                (["--model"], simulate),
                (["--tp", "1 to 64"], ["-m", LARGE, *simulate, "--tp", 65]),
                (["--pp", "80 layers"], ["-m", LARGE, *simulate, "--pp", 81]),
                (["--workers", "--simulate"], ["-m", LARGE, *simulate, "--workers", "a:1"]),
                (["--split", "3 parts for 2"], ["-m", LARGE, *simulate, "--split", "1,1,1"]),
                (["--prompt"], ["-m", LARGE, *simulate, "--prompt", 0]),
                (["-c"], ["-m", LARGE, *simulate, "--prompt", 9000, "-c", 4096]),
                (["--prompt", "-ub"], ["-m", LARGE, *simulate, "--prompt", 5000, "-ub", 1]),
                (["--scale"], ["-m", LARGE, *simulate, "--scale", "1,5"]),
                (["--plan", "--tp"], ["-m", LARGE, *simulate, "--plan", "p", "--tp", 2]),
                (["machines[0].memory_gib is missing"],
                 ["-m", LARGE, "--simulate", broken]),
                (["--simualte", "--simulate"], ["-m", LARGE, "--simualte", cluster])):
            with self.subTest(arguments=arguments):
                self.fail_with(EXIT_USAGE, words, "plan", *arguments)
        self.fail_with(EXIT_FAILURE, ["nowhere.json"], "plan", "-m", LARGE, "--simulate",
                       self.scratch / "nowhere.json")
        # Where the file cannot be written.
        self.fail_with(EXIT_FAILURE, ["--svg"], "plan", "-m", LARGE, *simulate, "--svg",
                       self.scratch / "nowhere" / "x.svg")


class RealMachines(TestCase):
    """Speeds are measured here once; they differ from run to run, so only shapes are looked at."""

    def plan(self, *arguments):
        return self.succeed("plan", "-m", STORIES, "--json", *arguments).json()

    def test_this_machine_is_measured_once(self):
        first = self.plan("-t", 1)
        self.assertIn("measured just now", first["notes"][0])
        self.assertTrue((self.cache_home / "recua" / "machine-speeds.json").is_file())
        second = self.plan("-t", 1)
        self.assertIn("measured before", second["notes"][0])
        self.assertEqual(second["plans"], first["plans"])
        self.assertIn("measured just now", self.plan("-t", 1, "--remeasure")["notes"][0])

    def test_a_small_model_gets_a_short_prompt(self):
        small = ROOT / "models" / "default.gguf"
        text = self.succeed("plan", "-m", small, "-t", 1).text
        self.assertIn("a prompt of 205 tokens, then 51 tokens", text)
        self.fail_with(EXIT_USAGE, ["--prompt 300", "256"], "plan", "-m", small, "-t", 1, "--prompt", 300)

    def test_workers_of_another_host_measure_themselves(self):
        address = not_loopback()
        if address is None:
            self.skipTest("this machine has no address but loopback")
        # Without shared memory, and not on loopback: nothing tells that they are on this host.
        workers = [self.worker("-t", 1, "--transport", "tcp", listen=f"{address}:0") for _ in range(2)]
        answer = self.plan("--workers", addresses(workers), "--use-all")
        self.assertFalse([note for note in answer["notes"] if "not measured" in note])
        self.assertTrue([note for note in answer["notes"] if "measured themselves" in note])
        remembered = [(worker.cache / "machine-speeds.json").read_bytes() for worker in workers]
        self.plan("--workers", addresses(workers), "--use-all")
        self.assertEqual([(worker.cache / "machine-speeds.json").read_bytes() for worker in workers],
                         remembered)

    def test_workers_are_asked_and_not_loaded(self):
        workers = [self.worker("-t", 1, "--memory", 1) for _ in range(2)]
        answer = self.plan("--workers", addresses(workers), "--use-all")
        used = {rank["machine"] for stage in answer["plans"][0]["stages"] for rank in stage["ranks"]}
        self.assertEqual(used, {worker.address for worker in workers})
        self.assertFalse([note for note in answer["notes"] if "not measured" in note])
        for worker in workers:
            self.check_alive(worker)
            self.assertNotIn("loading", worker.err)

    def test_memory_is_what_the_worker_offers(self):
        worker = self.worker("-t", 1, "--memory", 0.02)
        done = self.fail_with(EXIT_FAILURE, [worker.address, "20.5 MiB", "would need"], "plan",
                              "-m", random_model(), "--workers", worker.address)
        self.assertIn("in all", done.message)

    def test_a_worker_that_is_not_there_is_named(self):
        self.fail_with(EXIT_FAILURE, ["worker 127.0.0.1:1"], "plan", "-m", STORIES, "--workers",
                       "127.0.0.1:1")


class PlannedRuns(TestCase):
    """What `recua plan --save` wrote is what `--plan` runs."""

    def setUp(self):
        super().setUp()
        self.saved = self.scratch / "plan.json"

    def save(self, workers, *arguments):
        self.succeed("plan", "-m", STORIES, "--workers", addresses(workers), "--save", self.saved,
                     *arguments)
        return json.loads(self.saved.read_text())

    def change(self, change):
        plan = json.loads(self.saved.read_text())
        change(plan)
        self.saved.write_text(json.dumps(plan))

    def test_layers_come_where_the_plan_puts_them(self):
        workers = [self.worker("-t", 1) for _ in range(2)]
        self.save(workers, "--pp", 2, "-ts", "1,4")
        for given in ([], ["--workers", addresses(reversed(workers))]):
            self.check_stories("--plan", self.saved, *given)
            backend = self.generate([1], 1, "--plan", self.saved, *given)["backend"]
            self.assertIn(f"layers 0-0 on {workers[0].address}", backend)
            self.assertIn(f"| 1-4 on {workers[1].address}", backend)

    def test_heads_come_where_the_plan_puts_them(self):
        workers = [self.worker("-t", 1) for _ in range(2)]
        plan = self.save(workers, "--tp", 2, "-ts", "3,1")
        self.assertEqual([r["heads"] for r in plan["stages"][0]["ranks"]], [[0, 6], [6, 8]])
        self.check_stories("--plan", self.saved)
        for command in (["bench", "-p", 8, "-n", 2, "-r", 1, "-o", "json"],
                        ["perplexity", "-c", 16, "-p", "Once upon a time", "--json"]):
            self.succeed(command[0], "-m", STORIES, "--plan", self.saved, *command[1:])

    def test_machines_that_the_plan_leaves_out_stay_out(self):
        workers = [self.worker("-t", 1) for _ in range(2)]
        self.save(workers, "-ts", "0,1")
        answer = self.generate([1], 1, "--plan", self.saved, "--workers", addresses(workers))
        self.assertNotIn(workers[0].address, answer["backend"])
        self.assertIn(workers[1].address, answer["backend"])

    def remember_slow_machines(self):
        """As if this machine needed most of its time to read weights: then ranks are worth it."""
        path = self.cache_home / "recua" / "machine-speeds.json"
        speeds = json.loads(path.read_text())
        for entry in speeds["entries"]:
            n = entry["n_threads"]
            entry.update(bytes_per_second=1e6 * n, macs_per_second=1e9 * n,
                         attention_macs_per_second=1e9 * n)
            for kind in entry["types"]:
                kind.update(macs_per_second=1e9 * n, decode_macs_per_second=1e6 * n)
        path.write_text(json.dumps(speeds))

    def test_the_planner_chooses_unless_told_otherwise(self):
        workers = [self.worker("-t", 1) for _ in range(2)]
        run = ["run", "-m", STORIES, "-p", "a", "-n", 1, "--workers", addresses(workers)]
        # So small a model is faster without the other machine.
        self.assertIn("plan: layers 0-4 on 127.0.0.1", self.succeed(*run).message)
        self.save(workers)
        self.remember_slow_machines()
        for asked in ([], ["--plan", "auto"]):
            message = self.succeed(*run, *asked).message
            self.assertIn("plan: layers 0-4 on", message)
            for worker in workers:
                self.assertIn(worker.address, message)
        for own in (["--split", "1,1"], ["--tp", 2], ["--pp", 2], ["--plan", "layers"]):
            self.assertNotIn("plan:", self.succeed(*run, *own).message)
        self.check_stories("--workers", addresses(workers))
        for name in ("auto", "layers"):
            self.fail_with(EXIT_USAGE, [f"--plan {name}", "--workers"], "run", "-m", STORIES, "-p", "a",
                           "--plan", name)

    def test_a_plan_for_this_machine_runs_here(self):
        self.succeed("plan", "-m", STORIES, "-t", 1, "--save", self.saved)
        self.check_stories("--plan", self.saved)

    def test_a_plan_that_does_not_fit_is_explained(self):
        workers = [self.worker("-t", 1) for _ in range(2)]
        good = self.save(workers, "--pp", 2, "-ts", "3,2")

        def refused(words, *arguments, code=EXIT_USAGE):
            self.fail_with(code, [self.saved, *words], "run", "-m", STORIES, "-p", "a", "-n", 1,
                           "--plan", self.saved, *arguments)

        refused(["stages[0].ranks[0].machine", good["stages"][0]["ranks"][0]["machine"],
                 "not among the machines (127.0.0.1:1)"], "--workers", "127.0.0.1:1")
        self.change(lambda plan: plan["model"].update(n_layers=6))
        refused(["n_layers 6 (this one has 5)"])
        self.saved.write_text(json.dumps(good))
        self.change(lambda plan: plan["stages"][1].update(layers=[3, 4]))
        refused(["the plan gives 4 layers, but the model has 5"])
        self.saved.write_text(json.dumps(good))
        self.change(lambda plan: plan["stages"][1].update(layer=1))
        refused(["stages[1].layer "])
        self.saved.write_text(json.dumps(good))
        workers[1].kill()
        refused([f"worker {workers[1].address}"], code=EXIT_FAILURE)
        self.change(lambda plan: plan["stages"][0]["ranks"][0].update(machine="box-0:"))
        refused(["stages[0].ranks[0].machine", "box-0:", "not among the machines"])
        self.saved.write_text("{")
        refused(["JSON"])
        self.saved.unlink()
        refused([], code=EXIT_FAILURE)
        for more in (["--tp", 2], ["--split", "1,1"], ["--local-workers", 2]):
            self.fail_with(EXIT_USAGE, ["--plan", "whole plan"], "run", "-m", STORIES, "-p", "a",
                           "--plan", self.saved, *more)


if __name__ == "__main__":
    unittest.main()
