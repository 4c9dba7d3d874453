"""One machine: exact tokens, the forms that machines read, and what a wrong command line gets."""

import os
import signal
import subprocess
import unittest

from harness import (BINARY, EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, F32_CACHE, GREEDY, MODELS,
                     SLOW, STORIES, Done, TestCase, ids_flag, random_model, slow_model, stories,
                     stories_long, stories_perplexity, wait_until)


class Tokens(TestCase):
    def test_gives_the_greedy_tokens_of_the_reference(self):
        for case in stories()["cases"]:
            with self.subTest(prompt=case["prompt"]):
                answer = self.generate(case["prompt_ids"], 100)
                self.assertEqual(answer["ids"], case["greedy_ids"])
                self.assertEqual(answer["prompt_ids"], case["prompt_ids"])
                self.assertEqual(answer["finish_reason"], "length")

    def test_tokenizes_the_prompt_as_the_reference(self):
        for case in stories()["cases"]:
            with self.subTest(prompt=case["prompt"]):
                answer = self.succeed("run", "--json", "-m", STORIES, "-p", case["prompt"], "-n",
                                      100, *GREEDY, *F32_CACHE).json()
                self.assertEqual(answer["prompt_ids"], case["prompt_ids"])
                self.assertEqual(answer["ids"], case["greedy_ids"])

    def test_gives_the_480_token_run(self):
        case = stories_long()["cases"][0]
        answer = self.generate(case["prompt_ids"], 480)
        self.assertEqual(answer["ids"], case["greedy_ids"])

    def test_gives_the_log_probabilities_of_the_reference(self):
        case = stories()["cases"][0]
        answer = self.generate(case["prompt_ids"], 100, "--logprobs", 3)
        self.assertEqual([entry["id"] for entry in answer["logprobs"]], case["greedy_ids"])
        for entry, expected in zip(answer["logprobs"], case["logprobs"]):
            self.assertAlmostEqual(entry["logprob"], expected, delta=1e-3)
            self.assertEqual(len(entry["top"]), 3)
            self.assertEqual(entry["top"][0]["id"], entry["id"])  # Greedy: the best is chosen.

    def test_scores_the_prompt(self):
        case = stories()["cases"][0]
        text = case["prompt_ids"] + case["greedy_ids"]
        answer = self.generate(text, 1, "--prompt-logprobs", 1)
        scores = answer["prompt_logprobs"]
        self.assertEqual(len(scores), len(text))
        self.assertIsNone(scores[0])
        for entry, expected in zip(scores[-100:], case["logprobs"]):
            self.assertAlmostEqual(entry["logprob"], expected, delta=1e-3)

    def test_measures_the_perplexity_of_the_reference(self):
        for expected in stories_perplexity()["results"]:
            with self.subTest(ctx=expected["ctx"]):
                answer = self.succeed("perplexity", "--json", "-m", STORIES, "-f",
                                      MODELS / "story.txt", "-c", expected["ctx"],
                                      *F32_CACHE).json()
                self.assertEqual(answer["tokens"], expected["tokens"])
                self.assertAlmostEqual(answer["ppl"] / expected["ppl"], 1.0, delta=0.001)

    def test_does_not_depend_on_threads_or_batch_sizes(self):
        case = stories()["cases"][1]
        reference = self.generate(case["prompt_ids"], 60, "--logprobs", 2)
        for flags in (["-t", 1], ["-t", 3], ["-b", 4, "-ub", 2], ["-b", 3, "-ub", 1]):
            with self.subTest(flags=flags):
                answer = self.generate(case["prompt_ids"], 60, "--logprobs", 2, *flags)
                self.assertEqual(answer["logprobs"], reference["logprobs"])

    def test_the_same_seed_gives_the_same_text(self):
        flags = ["run", "--json", "-m", STORIES, "-p", "Once upon a time", "-n", 60, "--temp", "1"]
        first = self.succeed(*flags, "--seed", 5).json()
        self.assertEqual(self.succeed(*flags, "--seed", 5, "-t", 1).json()["ids"], first["ids"])
        self.assertNotEqual(self.succeed(*flags, "--seed", 6).json()["ids"], first["ids"])


class Placement(TestCase):
    def test_says_what_is_built_in(self):
        self.assertIn("topology: ", self.succeed("version").text)

    def test_moves_threads_and_no_token(self):
        if "not built in" in self.succeed("version", "--json").json()["topology"]:
            self.fail_with(EXIT_FAILURE, ["--cpu-range", "hwloc"], "run", "-m", STORIES, "-p", "Once",
                           "--cpu-range", "0-0")
            return
        first = min(os.sched_getaffinity(0))
        for flags in (["--cpu-range", f"{first}-{first}"], ["--cpu-strict", 1, "-t", 1],
                      ["--numa", "distribute"], ["--numa", "isolate"], ["--numa", "numactl", "-t", 3]):
            with self.subTest(flags=flags):
                self.check_stories(*flags)

    def test_explains_what_is_wrong(self):
        for words, flags in ((["--cpu-range", "9000-9001", "may use"], ["--cpu-range", "9000-9001"]),
                             (["--cpu-range", "LO-HI"], ["--cpu-range", "all"]),
                             (["--cpu-strict", "fewer threads"], ["--cpu-strict", 1, "-t", 1000]),
                             (["--numa", "isolate"], ["--numa", "mirror"]),
                             (["recua worker"], ["--cpu-strict", 1, "--local-workers", 1])):
            with self.subTest(flags=flags):
                self.fail_with(EXIT_USAGE, words, "run", "-m", STORIES, "-p", "Once", *flags)


class Output(TestCase):
    def test_text_is_the_text_of_the_json(self):
        flags = ["run", "-m", STORIES, "-p", "Once upon a time", "-n", 50, *GREEDY]
        answer = self.succeed(*flags, "--json").json()
        self.assertEqual(self.succeed(*flags).text.strip(), answer["text"].strip())

    def test_json_has_the_promised_fields(self):
        answer = self.succeed("run", "--json", "-m", STORIES, "-p", "Once", "-n", 3).json()
        for field in ("prompt_ids", "ids", "text", "finish_reason", "timings"):
            self.assertIn(field, answer)
        for field in ("load_ms", "prefill_ms", "decode_ms", "prefill_tokens_per_second",
                      "decode_tokens_per_second"):
            self.assertGreaterEqual(answer["timings"][field], 0)

    def test_the_prompt_may_come_from_a_file_or_standard_input(self):
        path = self.scratch / "prompt.txt"
        path.write_text("Once upon a time")
        flags = ["run", "--json", "-m", STORIES, "-n", 20, *GREEDY]
        expected = self.succeed(*flags, "-p", "Once upon a time").json()["ids"]
        self.assertEqual(self.succeed(*flags, "-f", path).json()["ids"], expected)
        self.assertEqual(self.succeed(*flags, stdin=b"Once upon a time").json()["ids"], expected)

    def test_control_c_ends_the_text_cleanly(self):
        run = self.start("run", "-m", slow_model(), "-p", "a", "-n", 3000, "-c", 4096, *GREEDY)
        wait_until(lambda: run.out or not run.running, "the first text")
        run.send(signal.SIGINT)
        done = run.wait(seconds=2)
        self.assertEqual(done.code, EXIT_INTERRUPTED, str(done))
        self.assertTrue(done.text.endswith("\n"))  # And is whole UTF-8, or .text would raise.

    def test_control_c_still_prints_the_json(self):
        run = self.start("run", "--json", "-m", slow_model(), "-p", "a", "-n", 3000, "-c", 4096,
                         *GREEDY, "-v")
        # JSON comes at the end, so wait until the process computes: it has used CPU for a while.
        wait_until(lambda: cpu_seconds(run.pid) > 0.5 * SLOW or not run.running, "it to compute")
        run.send(signal.SIGINT)
        done = run.wait(seconds=2)
        self.assertEqual(done.code, EXIT_INTERRUPTED, str(done))
        self.assertEqual(done.json()["finish_reason"], "cancelled")


    def test_output_that_cannot_be_written_is_an_error(self):
        run = ["run", "-m", STORIES, "-p", "Once", "-n", 20]
        for arguments in (run, [*run, "--json"], [*run, "--echo"],
                          ["bench", "-m", STORIES, "-p", 4, "-n", 0, "-r", 1, "-o", "jsonl"],
                          ["perplexity", "-m", STORIES, "-f", MODELS / "story.txt"],
                          ["inspect", STORIES], ["version"], ["--help"]):
            with self.subTest(arguments=arguments):
                arguments = [str(argument) for argument in arguments]
                with open("/dev/full", "wb") as full:
                    process = subprocess.run([BINARY, *arguments], stdin=subprocess.DEVNULL,
                                             stdout=full, stderr=subprocess.PIPE,
                                             timeout=60 * SLOW, check=False)
                done = Done(arguments, process.returncode, b"", process.stderr)
                self.check_failure(done, EXIT_FAILURE, ["cannot write to standard output"])

    def test_stops_soon_when_nobody_reads_the_text(self):
        arguments = ["run", "-m", str(slow_model()), "-p", "a", "-n", "4000", "-c", "4096", *GREEDY]
        err_path = self.scratch / "reader-gone.err"
        with err_path.open("wb") as err, \
                subprocess.Popen([BINARY, *arguments], stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=err) as process:
            self.cleanup.callback(process.kill)
            process.stdout.read(1)
            process.stdout.close()
            code = process.wait(timeout=4 * SLOW)  # The whole text takes twice as long.
        self.check_failure(Done(arguments, code, b"", err_path.read_bytes()), EXIT_FAILURE,
                           ["cannot write to standard output"])


def cpu_seconds(pid):
    """User and system time, /proc/PID/stat fields 14 and 15 in ticks of 10 ms."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100


class Usage(TestCase):
    def test_a_missing_model_is_asked_for(self):
        self.fail_with(EXIT_USAGE, ["-m"], "run", "-p", "a")

    def test_an_unknown_flag_names_the_nearest(self):
        self.fail_with(EXIT_USAGE, ["--promt", "--prompt"], "run", "-m", STORIES, "--promt", "a")

    def test_an_unknown_subcommand_names_the_nearest(self):
        self.fail_with(EXIT_USAGE, ["wroker", "worker"], "wroker")

    def test_wrong_values_are_named(self):
        for flags, words in ((["-ctk", "q4_1"], ["q4_1", "f16", "q8_0"]), (["-n", "many"], ["many"]),
                             (["--top-p", "2"], ["top-p", "2"]), (["-t", "-1"], ["-1"]),
                             (["--prompt-ids", "1,x"], ["x"])):
            with self.subTest(flags=flags):
                prompt = [] if "--prompt-ids" in flags else ["-p", "a"]
                self.fail_with(EXIT_USAGE, words, "run", "-m", STORIES, *prompt, *flags)

    def test_a_wrong_prompt_is_reported_before_the_model_is_opened(self):
        model = "/nowhere/model.gguf"
        self.fail_with(EXIT_FAILURE, ["/nowhere/prompt.txt"], "run", "-m", model, "-f",
                       "/nowhere/prompt.txt")
        self.fail_with(EXIT_USAGE, ["--prompt-ids", "'x'"], "run", "-m", model, "--prompt-ids", "x")

    def test_an_empty_list_of_prompt_ids_is_no_request_for_standard_input(self):
        for flags in (["--prompt-ids", ""], ["--prompt-ids="]):
            with self.subTest(flags=flags):
                self.fail_with(EXIT_USAGE, ["--prompt-ids"], "run", "-m", STORIES, *flags,
                               stdin=b"Once upon a time")

    def test_perplexity_needs_a_context_for_two_tokens(self):
        text = MODELS / "story.txt"
        self.fail_with(EXIT_USAGE, ["at least 2"], "perplexity", "-m", STORIES, "-f", text, "-c", 1)
        self.fail_with(EXIT_USAGE, ["at least 2"], "perplexity", "-m", random_model(ctx=1), "-f",
                       text, "-c", 0)

    def test_a_token_outside_the_vocabulary_is_refused(self):
        done = self.recua("run", "-m", STORIES, "--prompt-ids", "1,512", "-n", 1)
        self.assertIn(done.code, (EXIT_FAILURE, EXIT_USAGE), str(done))
        self.assertIn("512", done.message)

    def test_a_prompt_longer_than_the_context_is_refused(self):
        done = self.recua("run", "-m", STORIES, "--prompt-ids", ids_flag([1] + [300] * 99), "-c",
                          64, "-n", 1)
        self.assertIn(done.code, (EXIT_FAILURE, EXIT_USAGE), str(done))
        for word in ("100", "64"):
            self.assertIn(word, done.message)

    def test_a_missing_file_is_named(self):
        self.fail_with(EXIT_FAILURE, ["/nowhere/model.gguf"], "run", "-m", "/nowhere/model.gguf",
                       "-p", "a")

    def test_a_file_that_is_no_gguf_is_named(self):
        path = self.scratch / "notes.gguf"
        path.write_bytes(b"these are notes, not a model" * 10)
        self.fail_with(EXIT_FAILURE, [path, "GGUF"], "run", "-m", path, "-p", "a")

    def test_a_truncated_model_is_refused_wherever_it_ends(self):
        whole = STORIES.read_bytes()
        path = self.scratch / "truncated.gguf"
        for size in (0, 3, 4, 8, 16, 24, 100, 4000, 12000, len(whole) // 2, len(whole) - 1):
            with self.subTest(size=size):
                path.write_bytes(whole[:size])
                done = self.fail_with(EXIT_FAILURE, [path], "run", "-m", path, "-p", "a")
                self.assertEqual(len(done.message.strip().splitlines()), 1, str(done))


if __name__ == "__main__":
    unittest.main()
