"""train: learns, goes on after kill -9 to the bit, and says what is wrong with bad inputs."""

import csv
import json
import resource
import shlex
import signal
import subprocess
import unittest

from harness import (BINARY, EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, GREEDY, SLOW,
                     STORIES, Done, TestCase, wait_until)

ANIMALS = ["fox", "mule", "crow", "hare", "toad", "wren"]
PLACES = ["hill", "river", "barn", "forest", "road"]
TINY = ["--layers", 2, "--dim", 32, "--heads", 4, "--kv-heads", 2, "--context", 24, "--batch", 4,
        "--tied", "--validation", 0.1]


def story_lines():
    return [f"Once upon a time a {animal} went to the {place} and was very happy."
            for animal in ANIMALS for place in PLACES]


class TrainCase(TestCase):
    def setUp(self):
        super().setUp()
        self.text = self.scratch / "text.txt"
        self.text.write_text("\n".join(story_lines()) + "\n")

    def arguments(self, out, *more):
        return ["train", "--tokenizer", STORIES, "--data", self.text, "--out", out, *TINY, *more]

    def checkpoints(self, out):
        return sorted(path.name for path in out.glob("checkpoint-*"))


class Learning(TrainCase):
    def test_a_new_model_learns_and_runs(self):
        out = self.scratch / "run"
        answer = self.succeed(*self.arguments(out, "--steps", 60, "--lr", 5e-3, "--json")).json()
        self.assertEqual(answer["steps"], 60)
        rows = list(csv.DictReader((out / "log.csv").open()))
        self.assertEqual([int(row["step"]) for row in rows], list(range(1, 61)))
        self.assertLess(float(rows[-1]["loss"]), float(rows[0]["loss"]) - 2.0)
        self.assertIn("</svg>", (out / "loss.svg").read_text())
        self.assertEqual(len(self.checkpoints(out)), 3)
        model = out / "model.gguf"
        score = self.succeed("perplexity", "--json", "-m", model, "-f", self.text, "-c", 24).json()
        self.assertLess(score["nll"], float(rows[0]["loss"]) - 2.0)
        small = self.scratch / "small.gguf"
        self.succeed("quantize", model, small, "Q8_0")
        run = self.succeed("run", "--json", "-m", small, "-p", "Once upon", "-n", 4, *GREEDY)
        self.assertEqual(len(run.json()["ids"]), 4)

    def test_fine_tuning_lowers_the_loss_of_its_text(self):
        before = self.succeed("perplexity", "--json", "-m", STORIES, "-f", self.text).json()["nll"]
        out = self.scratch / "tuned"
        self.succeed("train", "-m", STORIES, "--data", self.text, "--out", out, "--context", 64,
                     "--batch", 4, "--steps", 12, "--lr", 1e-3)
        after = self.succeed("perplexity", "--json", "-m", out / "model.gguf", "-f",
                             self.text).json()["nll"]
        self.assertLess(after, before - 0.3)

    def test_learns_replies_from_jsonl(self):
        data = self.scratch / "replies.jsonl"
        data.write_text("".join(json.dumps({"prompt": f"Where is the {animal}?",
                                            "reply": f" In the {place}."}) + "\n"
                                for animal in ANIMALS for place in PLACES[:1]))
        out = self.scratch / "replies"
        answer = self.succeed("train", "-m", STORIES, "--data", data, "--out", out, "--context",
                              64, "--batch", 2, "--steps", 8, "--json").json()
        self.assertEqual(answer["steps"], 8)


class Adapters(TrainCase):
    def setUp(self):
        super().setUp()
        self.base = self.scratch / "base.gguf"
        self.succeed("quantize", STORIES, self.base, "Q8_0", "--allow-requantize")

    def flags(self, out, *more):
        return ["train", "-m", self.base, "--lora-rank", 4, "--data", self.text, "--out", out,
                "--context", 64, "--batch", 4, "--steps", 20, "--lr", 3e-3, *more]

    def nll(self, model, *more):
        return self.succeed("perplexity", "--json", "-m", model, "-f", self.text,
                            *more).json()["nll"]

    def test_an_adapter_learns_runs_and_merges(self):
        out = self.scratch / "adapter"
        kept = self.base.read_bytes()
        answer = self.succeed(*self.flags(out, "--json")).json()
        self.assertEqual(answer["model"], str(out / "adapter.gguf"))
        self.assertEqual(self.base.read_bytes(), kept)
        self.assertLess((out / "adapter.gguf").stat().st_size, 200_000)
        self.assertTrue((out / "best-adapter.gguf").exists())
        self.assertFalse((out / "model.gguf").exists())
        before = self.nll(self.base)
        after = self.nll(self.base, "--lora", out / "adapter.gguf")
        self.assertLess(after, before - 0.3)
        merged = self.scratch / "merged.gguf"
        done = self.succeed("export-lora", "-m", self.base, "--lora", out / "adapter.gguf", "-o",
                            merged, "--json").json()
        self.assertEqual(done["merged"], 35)
        self.assertAlmostEqual(self.nll(merged), after, delta=0.02)  # Q8_0 rounds activations.

    def test_resume_gives_the_same_bits_and_knows_its_base(self):
        whole, cut = self.scratch / "whole", self.scratch / "cut"
        every = ["--save-every", 5, "--lora-targets", "q_proj,v_proj", "-t"]
        self.succeed(*self.flags(whole, *every, 1))
        self.succeed(*self.flags(cut, *every, 2))
        for name in self.checkpoints(cut)[-1:]:
            (cut / name).unlink()
        (cut / "adapter.gguf").unlink()
        done = self.succeed(*self.flags(cut, *every, 1, "--resume", "--json")).json()
        self.assertEqual(done["resumed_from"], 15)
        self.assertEqual((cut / "adapter.gguf").read_bytes(),
                         (whole / "adapter.gguf").read_bytes())
        self.fail_with(EXIT_USAGE, ["lora-alpha=8", "lora-alpha=4"],
                       *self.flags(cut, *every, 1, "--lora-alpha", 4, "--resume"))
        self.base.rename(self.scratch / "moved.gguf")
        self.succeed("quantize", STORIES, self.base, "Q4_0", "--allow-requantize")
        self.fail_with(EXIT_USAGE, ["made by another run", "it had model="],
                       *self.flags(cut, *every, 1, "--resume"))

    def test_fine_tuning_knows_its_base(self):
        out = self.scratch / "tuned"
        flags = ["train", "--data", self.text, "--out", out, "--context", 32, "--batch", 2,
                 "--steps", 2]
        self.succeed(*flags, "-m", STORIES)
        self.succeed(*flags, "-m", STORIES, "--resume")
        self.fail_with(EXIT_USAGE, ["it had model="], *flags, "-m", self.base, "--resume")

    def test_flags(self):
        out = self.scratch / "adapter"
        self.fail_with(EXIT_USAGE, ["--lora-targets", "attn_norm", "ffn_down"],
                       *self.flags(out, "--lora-targets", "attn_norm"))
        self.fail_with(EXIT_USAGE, ["--lora-rank", "9000", "8192"],
                       *self.flags(out, "--lora-rank", 9000))
        self.fail_with(EXIT_USAGE, ["--lora-rank", "-m/--model"],
                       *self.arguments(out, "--lora-rank", 8))
        self.fail_with(EXIT_USAGE, ["--out", "same file"], "export-lora", "-m", self.base, "--lora",
                       self.base, "-o", self.base)
        self.fail_with(EXIT_FAILURE, ["general.type"], "export-lora", "-m", self.base, "--lora",
                       STORIES, "-o", out)


class Resuming(TrainCase):
    STEPS = ["--steps", 40, "--save-every", 5, "--eval-every", 10, "--keep", 2]
    MANY = ["--steps", 600, "--save-every", 20, "--eval-every", 50, "--keep", 2]

    def test_after_kill_9_the_weights_are_those_of_an_uninterrupted_run(self):
        whole, killed = self.scratch / "whole", self.scratch / "killed"
        self.succeed(*self.arguments(whole, *self.MANY, "-t", 1))
        process = self.start(*self.arguments(killed, *self.MANY, "-t", 1))
        wait_until(lambda: len(self.checkpoints(killed)) >= 2 or not process.running,
                   "a second checkpoint")
        process.kill()
        done = self.succeed(*self.arguments(killed, *self.MANY, "-t", 2, "--resume", "--json"))
        self.assertGreater(done.json()["resumed_from"], 0)
        self.assertLess(done.json()["resumed_from"], 600)
        for name in ("model.gguf", "best.gguf", "checkpoint-0000000600.recua"):
            self.assertEqual((whole / name).read_bytes(), (killed / name).read_bytes(), name)
        steps = [row["step"] for row in csv.DictReader((killed / "log.csv").open())]
        self.assertEqual(steps, [str(i) for i in range(1, 601)])

    def test_a_corrupt_checkpoint_is_named_and_the_one_before_used(self):
        out = self.scratch / "run"
        self.succeed(*self.arguments(out, *self.STEPS))
        expected = (out / "model.gguf").read_bytes()
        newest = out / self.checkpoints(out)[-1]
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1
        newest.write_bytes(data)
        done = self.succeed(*self.arguments(out, *self.STEPS, "--resume", "--json"))
        self.assertIn(newest.name, done.message)
        self.assertEqual(done.json()["resumed_from"], 35)
        self.assertEqual((out / "model.gguf").read_bytes(), expected)

    def test_ctrl_c_saves_and_resume_goes_on(self):
        out = self.scratch / "run"
        long = ["--steps", 2000, "--save-every", 1000, "--eval-every", 1000]
        process = self.start(*self.arguments(out, *long))
        log = out / "log.csv"
        wait_until(lambda: log.exists() and log.read_text().count("\n") > 3, "some steps")
        process.send(signal.SIGINT)
        done = process.wait()
        self.assertEqual(done.code, EXIT_INTERRUPTED, str(done))
        self.assertEqual(len(self.checkpoints(out)), 1)
        self.assertTrue((out / "model.gguf").exists())
        answer = self.recua(*self.arguments(out, *long, "--resume", "--seed", 3))
        self.check_failure(answer, EXIT_USAGE, ["seed"])

    def test_other_flags_or_no_resume_are_refused(self):
        out = self.scratch / "run"
        self.succeed(*self.arguments(out, "--steps", 2))
        self.fail_with(EXIT_USAGE, ["--resume", "checkpoint-"], *self.arguments(out, "--steps", 2))
        self.fail_with(EXIT_USAGE, ["seed=1", "seed=2"],
                       *self.arguments(out, "--steps", 2, "--seed", 2, "--resume"))


class BadInputs(TrainCase):
    def test_flags(self):
        out = self.scratch / "run"
        for words, more in ((["--heads", "--dim"], ["--heads", 5, "--kv-heads", 1]),
                            (["--kv-heads"], ["--kv-heads", 3]),
                            (["--lr", "-1"], ["--lr", -1]),
                            (["--arch", "qwen3moe"], ["--arch", "qwen3moe"]),
                            (["--context"], ["--context", 1]),
                            (["--model", "--tokenizer"], ["-m", STORIES])):
            with self.subTest(words=words):
                self.fail_with(EXIT_USAGE, words, *self.arguments(out, *more))
        self.fail_with(EXIT_USAGE, ["--data"], "train", "--tokenizer", STORIES, "--out", out)
        self.fail_with(EXIT_USAGE, ["--tokenizer"], "train", "--data", self.text, "--out", out)
        self.fail_with(EXIT_USAGE, ["--context", "2048"], "train", "-m", STORIES, "--data",
                       self.text, "--out", out, "--context", 4096)

    def test_a_model_that_does_not_fit_says_how_much_it_needs(self):
        huge = ["--layers", 1000, "--dim", 65536, "--heads", 64, "--kv-heads", 64]
        self.fail_with(EXIT_FAILURE, ["needs", "available", "--recompute"],
                       *self.arguments(self.scratch / "run", *huge))
        self.fail_with(EXIT_FAILURE, ["needs", "for the tokens of --accumulate batches"],
                       *self.arguments(self.scratch / "run", "--context", 65536, "--batch", 1,
                                       "--accumulate", 65536))

    def test_data(self):
        empty, binary = self.scratch / "empty.txt", self.scratch / "binary.txt"
        empty.write_bytes(b"")
        binary.write_bytes(bytes(range(256)) * 4)
        lines = self.scratch / "lines.jsonl"
        lines.write_text('{"prompt": "a", "reply": "b"}\n{"prompt": "a"}\n')
        long = self.scratch / "long.jsonl"
        long.write_text(json.dumps({"prompt": "Once", "reply": " upon a time" * 20}) + "\n")
        for path, words in ((empty, ["no text"]), (binary, ["byte 0", "binary"]), (lines, ["2"]),
                            (long, ["line 1", "at most 25", "context of 24"]),
                            (self.scratch / "none.txt", [])):
            with self.subTest(path=path.name):
                done = self.recua("train", "--tokenizer", STORIES, "--data", path, "--out",
                                  self.scratch / "run", *TINY)
                self.check_failure(done, done.code, [path.name, *words])
                self.assertIn(done.code, (EXIT_FAILURE, EXIT_USAGE))
                self.assertFalse((self.scratch / "run").exists())

    def test_a_loss_that_is_no_number_stops_at_its_step(self):
        out = self.scratch / "run"
        done = self.fail_with(EXIT_FAILURE, ["step ", "loss is", "checkpoint-0000000001"],
                              *self.arguments(out, "--steps", 20, "--lr", "1e20", "--warmup", 0,
                                              "--weight-decay", 0, "--save-every", 1))
        self.assertIn("--resume", done.message)
        self.assertFalse((out / "model.gguf").exists())

    # A limit on the size of files stands for a full disk.
    def test_a_full_disk_leaves_the_checkpoint_before(self):
        out = self.scratch / "run"
        flags = ["--steps", 4, "--save-every", 2]
        self.succeed(*self.arguments(out, *flags))
        last, before = (out / f"checkpoint-000000000{step}.recua" for step in (4, 2))
        expected, kept = last.read_bytes(), before.read_bytes()
        last.unlink()
        limit = len(kept) // 2
        arguments = [str(word) for word in self.arguments(out, *flags, "--resume")]
        done = subprocess.run(
            [BINARY, *arguments], capture_output=True, stdin=subprocess.DEVNULL, check=False,
            timeout=120 * SLOW,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        self.check_failure(Done(arguments, done.returncode, done.stdout, done.stderr),
                           EXIT_FAILURE, ["step 4", last.name, "cannot write"])
        self.assertEqual(self.checkpoints(out), [before.name])
        self.assertEqual(before.read_bytes(), kept)
        self.succeed(*arguments)
        self.assertEqual(last.read_bytes(), expected)


    # A file system in memory with room for one checkpoint and a half, and then for more.
    def test_a_full_file_system_leaves_the_checkpoint_before(self):
        flags = ["--steps", 6, "--save-every", 2, "--eval-every", 6, "--keep", 1, "-t", 1]
        whole, disk = self.scratch / "whole", self.scratch / "disk"
        self.succeed(*self.arguments(whole, *flags))
        disk.mkdir()
        room = (whole / self.checkpoints(whole)[-1]).stat().st_size * 3 // 2
        command = shlex.join([BINARY, *map(str, self.arguments(disk, *flags, "--resume"))])
        script = (f"mount -t tmpfs -o size={room} tmpfs {disk} || exit 77; {command}; echo code $?; "
                  f"ls {disk}; mount -o remount,size=64m {disk} && {command} --quiet && "
                  f"cp {disk}/model.gguf {self.scratch}")
        done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
                              capture_output=True, stdin=subprocess.DEVNULL, check=False, text=True,
                              timeout=120 * SLOW)
        if done.returncode == 77 or "unshare" in done.stderr:
            self.skipTest(f"no file system of our own: {done.stderr.strip()}")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("step 4 was not saved", done.stderr)
        self.assertIn("No space left on device", done.stderr)
        listed = done.stdout.splitlines()
        self.assertEqual(listed[0], f"code {EXIT_FAILURE}")
        self.assertEqual([name for name in listed if name.startswith("checkpoint")],
                         ["checkpoint-0000000002.recua"])
        self.assertEqual((self.scratch / "model.gguf").read_bytes(),
                         (whole / "model.gguf").read_bytes())


if __name__ == "__main__":
    unittest.main()
