"""train over workers: the run of one process, also when workers are lost on the way."""

import csv
import signal
import unittest

from harness import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, STORIES, addresses, wait_until
from test_training import TrainCase


def losses(out):
    return [float(row["loss"]) for row in csv.DictReader((out / "log.csv").read_text().splitlines())]


class DistributedCase(TrainCase):
    def train(self, name, *more):
        """Ends well; the folder and the object that --json prints."""
        out = self.scratch / name
        done = self.succeed(*self.arguments(out, "--json", "-t", 1, *more))
        return out, done

    def check_losses(self, out, expected, n_steps):
        got, wanted = losses(out), losses(expected)
        self.assertEqual(len(got), n_steps)
        self.assertEqual(len(wanted), n_steps)
        for step, (a, b) in enumerate(zip(got, wanted), 1):
            self.assertAlmostEqual(a, b, delta=1e-3, msg=f"step {step}")

    def steps_done(self, out):
        log = out / "log.csv"
        return max(0, log.read_text().count("\n") - 1) if log.exists() else 0


class Agreeing(DistributedCase):
    def test_the_loss_curve_is_that_of_one_process_for_200_steps(self):
        steps = ["--steps", 200, "--lr", 2e-3]
        alone, _ = self.train("alone", *steps)
        split, done = self.train("split", *steps, "--local-workers", 2)
        self.assertEqual(done.json()["workers"], 2)
        self.check_losses(split, alone, 200)
        self.assertLess(losses(split)[-1], losses(split)[0] - 1.0)  # It learned meanwhile.

    def test_as_many_ranks_give_the_same_bits(self):
        steps = ["--steps", 12, "--accumulate", 2, "--eval-every", 4]
        first, _ = self.train("first", *steps, "--local-workers", 3)
        second, _ = self.train("second", *steps, "--local-workers", 3)
        for name in ("model.gguf", "best.gguf", "checkpoint-0000000012.recua"):
            self.assertEqual((first / name).read_bytes(), (second / name).read_bytes(), name)

    def test_one_worker_gives_the_bits_of_none(self):
        alone, _ = self.train("alone", "--steps", 8)
        one, _ = self.train("one", "--steps", 8, "--local-workers", 1)
        self.assertEqual((alone / "model.gguf").read_bytes(), (one / "model.gguf").read_bytes())

    def test_a_model_is_tuned_by_workers_that_have_no_file(self):
        workers = self.workers(2, models=None)
        out = self.scratch / "tuned"
        tune = ["train", "-m", STORIES, "--data", self.text, "--context", 64, "--batch", 4,
                "--steps", 6, "--lr", 1e-3, "--json"]
        self.succeed(*tune, "--out", out, "--workers", addresses(workers))
        alone = self.scratch / "alone"
        self.succeed(*tune, "--out", alone)
        self.check_losses(out, alone, 6)
        self.check_stories("--workers", self.worker().address)  # Another one still serves.
        for worker in workers:
            self.check_alive(worker)


class Resuming(DistributedCase):
    STEPS = ["--steps", 20, "--save-every", 5, "--eval-every", 10]

    def test_with_another_number_of_workers(self):
        whole, _ = self.train("whole", *self.STEPS)
        out = self.scratch / "run"
        for name, workers in (("two", ["--local-workers", 2]), ("three", ["--local-workers", 3]),
                              ("none", [])):
            with self.subTest(workers=name):
                if out.exists():
                    (out / "checkpoint-0000000020.recua").unlink()
                _, done = self.train("run", *self.STEPS, "--resume", *workers)
                self.assertEqual(done.json()["steps"], 20)
                self.check_losses(out, whole, 20)

    def test_with_as_many_workers_gives_the_bits_of_an_uninterrupted_run(self):
        two = [*self.STEPS, "--local-workers", 2]
        whole, _ = self.train("whole", *two)
        out, _ = self.train("run", *two)
        (out / "checkpoint-0000000020.recua").unlink()
        _, done = self.train("run", *two, "--resume")
        self.assertEqual(done.json()["resumed_from"], 15)
        self.assertEqual((out / "model.gguf").read_bytes(), (whole / "model.gguf").read_bytes())


class Losing(DistributedCase):
    STEPS = ["--steps", 400, "--lr", 2e-3, "--save-every", 100, "--eval-every", 100]

    def run_and(self, disturb, n_workers, after_steps=30):
        """A run whose workers are disturbed when some steps are done; it has to end well."""
        workers = self.workers(n_workers, models=None)
        out = self.scratch / "run"
        run = self.start(*self.arguments(out, *self.STEPS, "--json", "-t", 1, "--workers",
                                         addresses(workers)))
        wait_until(lambda: self.steps_done(out) >= after_steps or not run.running, "some steps")
        self.assertTrue(run.running, run.err)
        disturb(workers)
        done = run.wait(seconds=60)
        self.assertEqual(done.code, 0, str(done))
        return workers, out, done

    def check_went_on(self, out, done):
        alone, _ = self.train("alone", *self.STEPS)
        self.assertEqual(done.json()["steps"], 400)
        self.check_losses(out, alone, 400)

    def test_after_kill_9_the_others_go_on_from_the_last_step(self):
        workers, out, done = self.run_and(lambda workers: workers[1].kill(), 3)
        self.assertIn(workers[1].address, done.message)
        self.assertIn("going on with 2 of 3 workers", done.message)
        self.assertEqual(done.json()["workers"], 2)
        self.check_went_on(out, done)
        self.check_alive(workers[0])

    def test_down_to_one_worker_and_then_alone(self):
        def kill_both(workers):
            workers[0].kill()
            before = self.steps_done(self.scratch / "run")
            wait_until(lambda: self.steps_done(self.scratch / "run") > before + 5, "more steps")
            workers[1].kill()

        _, out, done = self.run_and(kill_both, 2)
        self.assertIn("going on with 1 of 2 workers", done.message)
        self.assertIn("going on alone", done.message)
        self.assertEqual(done.json()["workers"], 0)
        self.check_went_on(out, done)

    def test_a_worker_that_hangs_is_lost_by_its_heartbeat(self):
        workers, out, done = self.run_and(lambda workers: workers[0].send(signal.SIGSTOP), 2)
        self.assertIn(workers[0].address, done.message)
        self.assertIn("going on with 1 of 2 workers", done.message)
        self.check_went_on(out, done)

    def test_workers_outlive_a_killed_coordinator(self):
        workers = self.workers(2, models=None)
        out = self.scratch / "run"
        command = self.arguments(out, *self.STEPS, "-t", 1, "--workers", addresses(workers))
        run = self.start(*command)
        wait_until(lambda: self.steps_done(out) >= 10 or not run.running, "some steps")
        run.kill()
        other = self.scratch / "other"
        self.succeed(*self.arguments(other, "--steps", 3, "--workers", addresses(workers)))

    def test_ctrl_c_saves_and_resume_goes_on(self):
        out = self.scratch / "run"
        command = self.arguments(out, *self.STEPS, "-t", 1, "--local-workers", 2)
        run = self.start(*command)
        wait_until(lambda: self.steps_done(out) >= 10 or not run.running, "some steps")
        run.send(signal.SIGINT)
        done = run.wait()
        self.assertEqual(done.code, EXIT_INTERRUPTED, str(done))
        done = self.succeed(*command, "--resume", "--json")
        self.assertGreaterEqual(done.json()["resumed_from"], 10)
        self.assertEqual(self.steps_done(out), 400)


class BadInputs(DistributedCase):
    def test_fewer_examples_than_workers(self):
        self.fail_with(EXIT_USAGE, ["--batch", "2 examples", "3 workers"],
                       *self.arguments(self.scratch / "run", "--batch", 2, "--steps", 2,
                                       "--local-workers", 3))

    def test_a_worker_without_memory_for_it_is_named(self):
        poor = self.worker("--memory", "0.001", models=None)
        rich = self.worker(models=None)
        self.fail_with(EXIT_FAILURE, [poor.address, "needs", "are free"],
                       *self.arguments(self.scratch / "run", "--steps", 2, "--workers",
                                       addresses([rich, poor])))
        self.check_alive(poor)
        self.succeed(*self.arguments(self.scratch / "other", "--steps", 2, "--workers",
                                     rich.address))

    def test_a_worker_that_is_not_there_is_named(self):
        worker = self.worker(models=None)
        worker.kill()
        self.fail_with(EXIT_FAILURE, [worker.address],
                       *self.arguments(self.scratch / "run", "--steps", 2, "--workers",
                                       worker.address))

    def test_training_that_diverges_stops_at_its_step(self):
        self.fail_with(EXIT_FAILURE, ["step", "diverged"],
                       *self.arguments(self.scratch / "run", "--steps", 50, "--lr", 1e30,
                                       "--warmup", 0, "--weight-decay", 0, "--local-workers", 2))


if __name__ == "__main__":
    unittest.main()
