"""inspect, tokenize, quantize, synth, bench: what they write can be read, here and by machines."""

import csv
import io
import json
import os
import pathlib
import subprocess
import unittest

from harness import (BINARY, EXIT_FAILURE, EXIT_OK, EXIT_USAGE, GREEDY, ROOT, STORIES, TestCase, ids_flag,
                     random_model, stories)

PROGRAM = pathlib.Path(BINARY).read_bytes()
SANITIZED = any(name in PROGRAM for name in (b"__asan_init", b"__tsan_init"))
UNOPTIMIZED = b".debug_info" in PROGRAM  # Its program is ten times as large.
SUBCOMMANDS = ["run", "worker", "inspect", "tokenize", "quantize", "perplexity", "synth", "bench",
               "net", "plan", "train", "train-tokenizer", "export-lora"]
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M",
         "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ4_NL",
         "IQ4_XS", "MXFP4"]


class Help(TestCase):
    def test_each_subcommand_shows_examples(self):
        for name in SUBCOMMANDS:
            with self.subTest(subcommand=name):
                done = self.succeed(name, "--help")
                self.assertIn(f"recua {name}", done.text)
                self.assertIn("Examples:", done.text)

    def test_the_version_is_one_line(self):
        done = self.succeed("--version")
        self.assertIn("0.1", done.text)

    def test_nothing_asked_is_wrong_usage(self):
        self.assertEqual(self.recua().code, EXIT_USAGE)


class Inspect(TestCase):
    def test_says_what_a_model_is(self):
        text = self.succeed("inspect", STORIES).text
        self.assertIn("llama", text)

    def test_lists_metadata_and_tensors_as_json(self):
        answer = self.succeed("inspect", "--json", STORIES).json()
        self.assertEqual(answer["metadata"]["general.architecture"],
                         {"type": "string", "value": "llama"})
        tensors = {tensor["name"]: tensor for tensor in answer["tensors"]}
        self.assertIn("token_embd.weight", tensors)
        self.assertEqual(tensors["token_embd.weight"]["type"].upper(), "F32")
        self.assertEqual(list(tensors["token_embd.weight"]["shape"]), [64, 512])

    @unittest.skipIf(SANITIZED, "a sanitizer has memory of its own")
    @unittest.skipIf(UNOPTIMIZED, "a debug build's program is larger than a release's")
    def test_knows_the_memory_that_a_run_takes(self):
        model = random_model(layers=4, dim=1024, ffn=4096, vocab=8192, type_name="Q8_0")
        sizes = ["-c", "1024", "-ub", "64", "-t", "2"]
        said = self.succeed("inspect", "--memory", "--json", *sizes, model).json()["memory"]
        used = self.peak_bytes(model, 540, sizes)  # More than one micro-batch.
        self.assertTrue(0.85 < said["total"] / used < 1.15, f"{said} against {used} bytes")

    @unittest.skipIf(SANITIZED, "a sanitizer has memory of its own")
    def test_a_longer_prompt_takes_its_cache_and_no_more(self):
        model = random_model(layers=4, dim=1024, ffn=4096, vocab=8192, type_name="Q8_0")
        sizes = ["-c", "4096", "-ub", "64", "-t", "2"]
        said = self.succeed("inspect", "--memory", "--json", *sizes, model).json()["memory"]
        short, long = (self.peak_bytes(model, n, sizes) for n in (128, 3968))
        # A token more is its keys and values, and a few numbers in tables. 8 MiB: huge pages.
        more = said["cache"] * (3968 - 128) // 4096 + 3968 * 1024 + (8 << 20)
        self.assertLess(long - short, more, f"{short} and {long} bytes")

    def peak_bytes(self, model, n_prompt, sizes):
        """Most resident memory of a run, as the kernel counted it."""
        ids = ids_flag(3 + i * 7919 % 251 for i in range(n_prompt))
        run = subprocess.Popen([BINARY, "run", "-m", model, "--prompt-ids", ids, "-n", "8", "--ignore-eos", *sizes],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(run.returncode, EXIT_OK)
        return used.ru_maxrss * 1024

    def test_refuses_a_context_for_which_there_is_no_memory(self):
        model = random_model(layers=2, dim=128, ffn=256, vocab=512, type_name="Q4_0")
        sizes = ["-c", "200000000"]
        said = self.succeed("inspect", "--memory", "--json", *sizes, model).json()["memory"]
        if said["total"] <= said["available"]:
            self.skipTest("this machine has the memory")
        self.fail_with(EXIT_FAILURE, ["more than", "free", "-c ", "--no-memory-check"],
                       "run", "-m", model, "-p", "a", "-n", "1", *sizes)

    def test_refuses_what_is_no_model(self):
        path = self.scratch / "x.gguf"
        path.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 16)
        self.fail_with(EXIT_FAILURE, [path], "inspect", path)


class Tokenize(TestCase):
    def test_gives_the_vectors_of_the_reference(self):
        path = ROOT / "tests" / "golden" / "tokenizers" / "ids" / "stories260K.jsonl"
        for line in path.read_text().splitlines()[:40]:
            case = json.loads(line)
            with self.subTest(text=case["text"]):
                answer = self.succeed("tokenize", "-m", STORIES, "--json", "--no-bos",
                                      "--no-special", stdin=case["text"].encode()).json()
                self.assertEqual(answer["ids"], case["ids"])

    def test_puts_the_beginning_of_sequence_first(self):
        case = stories()["cases"][0]
        answer = self.succeed("tokenize", "-m", STORIES, "--json", "-p", case["prompt"]).json()
        self.assertEqual(answer["ids"], case["prompt_ids"])

    def test_takes_bytes_that_are_not_utf8(self):
        answer = self.succeed("tokenize", "-m", STORIES, "--json", stdin=b"\xff\xfe a \x80").json()
        self.assertTrue(answer["ids"])


class Quantize(TestCase):
    def test_writes_every_type_and_runs_it(self):
        model = random_model(layers=2, dim=256, ffn=512, type_name="F32")
        sizes = {}
        for type_name in TYPES:
            with self.subTest(type=type_name):
                out = self.scratch / f"{type_name}.gguf"
                self.succeed("quantize", model, out, type_name)
                sizes[type_name] = out.stat().st_size
                answer = self.succeed("run", "--json", "-m", out, "--prompt-ids", "1,5,6,7", "-n",
                                      4, *GREEDY).json()
                self.assertEqual(len(answer["ids"]), 4)
                self.assertEqual(self.succeed("inspect", out).code, EXIT_OK)
        for smaller, larger in (("F16", "F32"), ("Q8_0", "F16"), ("Q6_K", "Q8_0"),
                                ("Q5_K_M", "Q6_K"), ("Q4_K_M", "Q5_K_M"), ("Q4_K_S", "Q4_K_M"),
                                ("Q3_K_M", "Q4_K_S"), ("Q2_K", "Q3_K_M"),
                                ("IQ4_XS", "IQ4_NL"), ("MXFP4", "IQ4_NL")):
            self.assertLess(sizes[smaller], sizes[larger], f"{smaller} against {larger}")

    def test_f32_keeps_every_bit(self):
        out = self.scratch / "f32.gguf"
        self.succeed("quantize", STORIES, out, "F32")
        case = stories()["cases"][0]
        self.assertEqual(self.generate(case["prompt_ids"], 100, model=out)["ids"],
                         case["greedy_ids"])

    def test_rows_that_do_not_fit_a_type_fall_back(self):
        out = self.scratch / "q4_k_m.gguf"
        self.succeed("quantize", STORIES, out, "Q4_K_M")  # Rows of 64 and 172 elements.
        self.assertEqual(len(self.generate(stories()["cases"][0]["prompt_ids"], 8,
                                           model=out)["ids"]), 8)

    def test_does_not_depend_on_threads(self):
        one, two = self.scratch / "1.gguf", self.scratch / "2.gguf"
        self.succeed("quantize", STORIES, one, "Q8_0", "-t", 1)
        self.succeed("quantize", STORIES, two, "Q8_0", "-t", 2)
        self.assertEqual(one.read_bytes(), two.read_bytes())

    def test_an_unknown_type_lists_the_known_ones(self):
        self.fail_with(EXIT_USAGE, ["Q9_X", "Q4_K_M", "Q8_0"], "quantize", STORIES,
                       self.scratch / "x.gguf", "Q9_X")
        self.assertFalse((self.scratch / "x.gguf").exists())

    def test_leaves_nothing_half_written(self):
        out = self.scratch / "nowhere" / "x.gguf"
        self.fail_with(EXIT_FAILURE, [out.parent], "quantize", STORIES, out, "F16")


class Synth(TestCase):
    SHAPE = ["--arch", "llama", "--layers", "2", "--dim", "64", "--ffn", "128", "--heads", "4",
             "--kv-heads", "2", "--vocab", "512", "--type", "F16"]

    def test_the_same_seed_writes_the_same_file(self):
        paths = [self.scratch / f"{i}.gguf" for i in range(3)]
        for path, seed in zip(paths, (1, 1, 2)):
            self.succeed("synth", path, *self.SHAPE, "--seed", seed)
        self.assertEqual(paths[0].read_bytes(), paths[1].read_bytes())
        self.assertNotEqual(paths[0].read_bytes(), paths[2].read_bytes())

    def test_what_it_writes_takes_text(self):
        path = self.scratch / "x.gguf"
        self.succeed("synth", path, *self.SHAPE, "--seed", 1)
        answer = self.succeed("run", "--json", "-m", path, "-p", "Grüße, 世界!", "-n", 5,
                              *GREEDY).json()
        self.assertEqual(len(answer["ids"]), 5)

    def test_shapes_that_cannot_be_are_refused(self):
        self.fail_with(EXIT_USAGE, ["heads"], "synth", self.scratch / "x.gguf", "--arch", "llama",
                       "--layers", 1, "--dim", 64, "--ffn", 64, "--heads", 5, "--kv-heads", 2,
                       "--vocab", 512, "--type", "F16")


class Bench(TestCase):
    FLAGS = ["bench", "-m", STORIES, "-p", 16, "-n", 4, "-r", 2]

    def test_json_has_the_field_names_that_tools_know(self):
        rows = self.succeed(*self.FLAGS, "-o", "json").json()
        self.assertEqual({(row["n_prompt"], row["n_gen"]) for row in rows}, {(16, 0), (0, 4)})
        for row in rows:
            for field in ("model_filename", "n_threads", "n_depth", "avg_ts", "stddev_ts"):
                self.assertIn(field, row)
            self.assertEqual(len(row["samples_ts"]), 2)
            self.assertGreater(row["avg_ts"], 0)

    def test_other_forms_hold_the_same_rows(self):
        lines = self.succeed(*self.FLAGS, "-o", "jsonl").text.splitlines()
        self.assertEqual([json.loads(line)["n_prompt"] for line in lines], [16, 0])
        rows = list(csv.DictReader(io.StringIO(self.succeed(*self.FLAGS, "-o", "csv").text)))
        self.assertEqual([row["n_gen"] for row in rows], ["0", "4"])
        table = self.succeed(*self.FLAGS, "-o", "md").text
        self.assertIn("pp16", table)
        self.assertIn("tg4", table)


if __name__ == "__main__":
    unittest.main()
