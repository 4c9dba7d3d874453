"""A model spread over workers gives what one machine gives, to the bit."""

import pathlib
import signal
import unittest

from harness import (EXIT_FAILURE, EXIT_USAGE, F32_CACHE, GREEDY, MODELS, STORIES, TestCase, addresses, ids_flag,
                     over, random_model, slow_model, stories, stories_long, stories_perplexity, wait_until)


def session_members(session):
    """Processes of a session that still live (not zombies), from /proc/PID/stat."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # It ended while we looked.
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def n_threads(pid):
    return len(list(pathlib.Path(f"/proc/{pid}/task").iterdir()))


class Split(TestCase):
    def test_gives_the_greedy_tokens_over_1_2_3_and_5_workers(self):
        workers = self.workers(5)
        for n in (1, 2, 3, 5):
            with self.subTest(workers=n):
                self.check_stories(*over(workers[:n]), cases=8)

    def test_gives_the_480_token_run_over_3_workers(self):
        case = stories_long()["cases"][0]
        answer = self.generate(case["prompt_ids"], 480, *over(self.workers(3)))
        self.assertEqual(answer["ids"], case["greedy_ids"])

    def test_log_probabilities_are_those_of_one_machine_to_the_bit(self):
        case = stories()["cases"][0]
        text = case["prompt_ids"] + case["greedy_ids"][:40]
        flags = ["--logprobs", 8, "--prompt-logprobs", 8]
        alone = self.generate(text, 40, *flags)
        workers = self.workers(3)
        for n in (1, 2, 3):
            with self.subTest(workers=n):
                spread = self.generate(text, 40, *flags, *over(workers[:n]))
                self.assertEqual(spread["prompt_logprobs"], alone["prompt_logprobs"])
                self.assertEqual(spread["logprobs"], alone["logprobs"])

    def test_quantized_and_16_bit_caches_agree_too(self):
        model = random_model(layers=4, dim=256, ffn=768, type_name="Q4_K_M")
        flags = ["run", "--json", "-m", model, "--prompt-ids", ids_flag(range(3, 203)), "-n", 30,
                 "--temp", 0, "--ignore-eos", "--logprobs", 4, "-ub", 64]
        alone = self.succeed(*flags).json()
        workers = self.workers(2, models=model.parent)
        spread = self.succeed(*flags, *over(workers)).json()
        self.assertEqual(spread["logprobs"], alone["logprobs"])

    def test_gives_the_greedy_tokens_over_ranks_and_groups_of_them(self):
        workers = self.workers(4)
        for n, ranks, more in ((2, 2, []), (3, 3, []), (4, 4, []), (4, 2, []), (3, 3, ["--split", "3,2,1"]),
                               (4, 2, ["--split", "1,4"]), (2, 2, ["--transport", "tcp"])):
            with self.subTest(workers=n, ranks=ranks, more=more):
                self.check_stories("--workers", addresses(workers[:n]), "--tp", ranks, *more, cases=4)

    def test_measures_the_same_perplexity_over_ranks(self):
        workers = addresses(self.workers(3))
        for expected in stories_perplexity()["results"]:
            with self.subTest(ctx=expected["ctx"]):
                answer = self.succeed("perplexity", "--json", "-m", STORIES, "-f", MODELS / "story.txt", "-c",
                                      expected["ctx"], *F32_CACHE, "--workers", workers, "--tp", 3).json()
                self.assertAlmostEqual(answer["ppl"] / expected["ppl"], 1.0, delta=1e-4)

    def test_ranks_serve_two_coordinators_at_once(self):
        case = stories()["cases"][0]
        flags = ["run", "--json", "-m", STORIES, "--prompt-ids", ids_flag(case["prompt_ids"]), "-n", 200, "--temp", 0,
                 "--ignore-eos", *F32_CACHE, "--workers", addresses(self.workers(2)), "--tp", 2]
        for done in [run.wait() for run in [self.start(*flags), self.start(*flags)]]:
            self.assertEqual(done.code, 0, str(done))
            self.assertEqual(done.json()["ids"][:len(case["greedy_ids"])], case["greedy_ids"])

    def test_links_between_ranks_are_counted_and_say_how_they_sum(self):
        for transport, n, ranks in (("shm", 3, 3), ("tcp", 3, 3), ("shm", 4, 2)):
            with self.subTest(transport=transport, workers=n, ranks=ranks):
                done = self.succeed("run", "--json", "-m", STORIES, "-p", "Lily", "-n", 10, *GREEDY, "--local-workers",
                                    n, "--tp", ranks, "--transport", transport)
                links = [link for link in done.json()["links"] if link["carries"] == "exchanges"]
                self.assertEqual(len(links), n * (ranks - 1) * 2, str(links))
                for sender, receiver in zip(links[::2], links[1::2]):
                    self.assertEqual((sender["end"], receiver["end"]), ("sender", "receiver"))
                    for field in ("from", "to", "messages", "bytes"):
                        self.assertEqual(sender[field], receiver[field], field)
                    self.assertGreater(sender["messages"], 10)
                    self.assertGreater(sender["bytes"], 10 * 64 * 4)  # A row for each token at least.
                    self.assertTrue(sender["transport"].startswith({"shm": "shared memory"}.get(transport, transport)))
                    self.assertEqual(sender["payload_copies"], 0, str(sender))
                    if transport == "shm":
                        self.assertEqual(receiver["payload_copies"], 0, str(receiver))
                self.assertEqual(len({(link["from"], link["to"]) for link in links}), n * (ranks - 1))
                groups = [line for line in done.message.splitlines() if line.startswith("I ranks ")]
                self.assertEqual(len(groups), n // ranks, done.message)
                for line in groups:
                    self.assertRegex(line, r": sums .*\(measured with up to [0-9.]+ [KM]?i?B in .*s\)$")

    def test_computes_while_sums_travel_and_rounds_them(self):
        expected = stories_perplexity()["results"][0]
        flags = ["perplexity", "--json", "-m", STORIES, "-f", MODELS / "story.txt", "-c", expected["ctx"], *F32_CACHE,
                 "--local-workers", 2, "--tp", 2, "--transport", "tcp", "--link-delay", 500]
        for sums, within in (("f32", 1e-4), ("f16", 1e-3), ("bf16", 5e-3), ("i8", 2e-2)):
            with self.subTest(sums=sums):
                done = self.succeed(*flags, "--sum-type", sums)
                self.assertAlmostEqual(done.json()["ppl"] / expected["ppl"], 1.0, delta=within)
                self.assertIn(", computing meanwhile", done.message)
                self.assertEqual(f", sent as {sums}" in done.message, sums != "f32")
        self.fail_with(EXIT_USAGE, ["--sum-type", "f64", "f32, f16, bf16 or i8"], *flags, "--sum-type", "f64")

    def test_ranks_that_cannot_be_are_refused(self):
        workers = addresses(self.workers(3))
        self.fail_with(EXIT_USAGE, ["--tp 2", "multiple of 2"], "run", "-m", STORIES, "-p", "x", "--workers", workers,
                       "--tp", 2)
        self.fail_with(EXIT_USAGE, ["--tp", "--workers"], "run", "-m", STORIES, "-p", "x", "--tp", 2)
        self.fail_with(EXIT_USAGE, ["--tp", "1 to 64"], "run", "-m", STORIES, "-p", "x", "--workers", workers,
                       "--tp", 65)

    def test_samples_the_same_tokens_for_the_same_seed(self):
        flags = ["run", "--json", "-m", STORIES, "-p", "Lily", "-n", 60, "--temp", 0.9, "--seed", 3]
        alone = self.succeed(*flags).json()
        spread = self.succeed(*flags, *over(self.workers(2))).json()
        self.assertEqual(spread["ids"], alone["ids"])

    def test_follows_the_split_that_is_asked_for(self):
        workers = self.workers(2)
        for split in ("1,4", "4,1", "2,3"):
            with self.subTest(split=split):
                self.check_stories("--workers", addresses(workers), "--split", split)

    def test_measures_the_same_perplexity(self):
        expected = stories_perplexity()["results"][0]
        answer = self.succeed("perplexity", "--json", "-m", STORIES, "-f", MODELS / "story.txt",
                              "-c", expected["ctx"], *F32_CACHE,
                              *over(self.workers(2))).json()
        self.assertAlmostEqual(answer["ppl"] / expected["ppl"], 1.0, delta=0.001)


class RanksLoad(TestCase):
    # One layer of 30 MiB, and 32 MiB each for tokens and logits, of which a rank of two needs half the rows.
    SHAPE = {"layers": 1, "dim": 1024, "ffn": 4096, "vocab": 16384, "type_name": "F16"}

    def test_each_rank_fetches_little_more_than_its_part(self):
        model = random_model(**self.SHAPE)
        flags = ["run", "--json", "-m", model, "--prompt-ids", ids_flag(range(3, 43)), "-n", 10, *GREEDY, "--logprobs",
                 4, "--tp", 2, "--workers"]
        with_file = self.succeed(*flags, addresses(self.workers(2, models=model.parent))).json()
        workers = self.workers(2, models=None)
        fetched = self.succeed(*flags, addresses(workers)).json()
        self.assertEqual(fetched["logprobs"], with_file["logprobs"])  # The same plan, the same bits.
        came = {link["to"]: link["bytes"] for link in fetched["links"]
                if link["carries"] == "weights" and link["end"] == "receiver"}
        self.assertEqual(set(came), {worker.address for worker in workers})
        for worker in workers:
            self.assertLess(came[worker.address], 0.65 * model.stat().st_size)
            self.assertGreater(came[worker.address], 0.4 * model.stat().st_size)
        # What is kept is enough for the next time, and for the other way round it is not.
        again = self.succeed(*flags, addresses(workers)).json()
        self.assertEqual(again["logprobs"], with_file["logprobs"])
        self.assertEqual([link for link in again["links"] if link["carries"] == "weights"], [])
        turned = self.succeed(*flags, addresses(workers[::-1])).json()
        self.assertEqual(turned["logprobs"], with_file["logprobs"])

    def test_a_rank_with_another_file_is_named(self):
        folder = self.folder_with_another_stories()
        for more in (["--tp", 2], []):
            right, wrong = self.worker(), self.worker(models=folder)
            # The second stage of five layers has the middle of the file, and so has each rank.
            flags = ["--workers", addresses([right, wrong]), *more, *([] if more else ["--split", "1,4"])]
            with self.subTest(flags=flags):
                said = self.fail_with(EXIT_FAILURE, [wrong.address, folder / STORIES.name, "is not the coordinator's",
                                                     "--no-fetch"],
                                      "run", "-m", STORIES, "-p", "a", *flags, "--no-fetch")
                self.assertNotIn(right.address, said.message)
                case = stories()["cases"][0]
                done = self.succeed("run", "--json", "-m", STORIES, "--prompt-ids", ids_flag(case["prompt_ids"]), "-n",
                                    len(case["greedy_ids"]), *GREEDY, *F32_CACHE, *flags)
                self.assertEqual(done.json()["ids"], case["greedy_ids"])
                warnings = [line for line in done.message.splitlines() if line.startswith("W ")]
                self.assertEqual(len(warnings), 1, done.message)
                for word in (f"worker {wrong.address}: ", str(folder / STORIES.name), "is not the coordinator's"):
                    self.assertIn(word, warnings[0])


class RanksDie(TestCase):
    """The others get an error soon, end what they did for this coordinator, and take the next one."""

    def generating(self):
        """Three ranks that have printed their first text and have long to go, and their threads when idle."""
        model = slow_model()
        workers = self.workers(3, models=model.parent)
        n_idle = [n_threads(worker.pid) for worker in workers]
        run = self.start("run", "-m", model, "-p", "a", "-n", 3500, "-c", 4096, *GREEDY, "--workers",
                         addresses(workers), "--tp", 3)
        wait_until(lambda: run.out or not run.running, "the first text", seconds=60)
        self.assertTrue(run.running, run.err)
        return workers, n_idle, run

    def check_idle_again(self, workers, n_idle):
        for worker, n in zip(workers, n_idle):
            self.check_alive(worker)
            # One more looks up names, from the first channel on; a session has two or more.
            wait_until(lambda worker=worker, n=n: n_threads(worker.pid) <= n + 1,
                       f"the session of {worker.address} to end")

    def check_serve(self, workers):
        model = slow_model()
        self.succeed("run", "-m", model, "-p", "a", "-n", 3, *GREEDY, "--workers", addresses(workers), "--tp",
                     len(workers))

    def test_the_others_end_their_sessions_and_serve_the_next(self):
        for dead in (0, 1):
            with self.subTest(rank=dead):
                workers, n_idle, run = self.generating()
                workers[dead].kill()
                self.check_failure(run.wait(seconds=10), EXIT_FAILURE, [workers[dead].address])
                del workers[dead], n_idle[dead]
                self.check_idle_again(workers, n_idle)
                self.check_serve(workers)

    def test_a_rank_that_falls_silent_is_named_and_comes_back(self):
        workers, n_idle, run = self.generating()
        workers[1].send(signal.SIGSTOP)
        try:
            self.check_failure(run.wait(seconds=15), EXIT_FAILURE, [workers[1].address])
            self.check_idle_again(workers[::2], n_idle[::2])
            self.check_serve(workers[::2])
        finally:
            workers[1].send(signal.SIGCONT)
        self.check_idle_again(workers, n_idle)
        self.check_serve(workers)

    def test_ranks_outlive_a_killed_coordinator(self):
        workers, n_idle, run = self.generating()
        run.kill()
        self.check_idle_again(workers, n_idle)
        self.check_serve(workers)


class Workers(TestCase):
    def test_listen_on_ipv6(self):
        try:
            worker = self.worker(listen="[::1]:0")
        except AssertionError as error:
            if "address" in str(error).lower() and not pathlib.Path("/proc/net/if_inet6").exists():
                self.skipTest("skipped: no IPv6 here")
            raise
        self.assertTrue(worker.address.startswith("[::1]:"), worker.address)
        self.check_stories("--workers", worker.address)

    def test_are_found_by_name(self):
        worker = self.worker()
        self.check_stories("--workers", f"localhost:{worker.port}")

    def test_serve_two_coordinators_at_once(self):
        workers = self.workers(2)
        case = stories_long()["cases"][0]
        flags = ["run", "--json", "-m", STORIES, "--prompt-ids", ids_flag(case["prompt_ids"]), "-n",
                 480, "--temp", 0, "--ignore-eos", *F32_CACHE]
        runs = [self.start(*flags, *over(workers)),
                self.start(*flags, *over(workers[::-1]))]
        for run in runs:
            done = run.wait()
            self.assertEqual(done.code, 0, str(done))
            self.assertEqual(done.json()["ids"], case["greedy_ids"])

    def test_serve_one_coordinator_after_another(self):
        workers = self.workers(2)
        for _ in range(5):
            self.check_stories(*over(workers))
        for worker in workers:
            self.check_alive(worker)


class LocalWorkers(TestCase):
    def test_give_the_same_tokens_and_leave_no_process(self):
        case = stories()["cases"][0]
        run = self.start("run", "--json", "-m", STORIES, "--prompt-ids",
                         ids_flag(case["prompt_ids"]), "-n", 100, "--temp", 0, "--ignore-eos",
                         *F32_CACHE, "--local-workers", 2)
        done = run.wait()
        self.assertEqual(done.code, 0, str(done))
        self.assertEqual(done.json()["ids"], case["greedy_ids"])
        self.assertEqual(session_members(run.pid), [])

    def test_tell_both_ends_of_every_link(self):
        case = stories()["cases"][0]
        answer = self.succeed("run", "--json", "-m", STORIES, "--prompt-ids",
                              ids_flag(case["prompt_ids"]), "-n", 10, "--temp", 0, "--ignore-eos",
                              *F32_CACHE, "--local-workers", 2, "--transport", "tcp").json()
        self.assertEqual(answer["ids"], case["greedy_ids"][:10])
        links = answer["links"]
        self.assertEqual([link["end"] for link in links], ["sender", "receiver"] * 3)
        self.assertEqual({link["messages"] for link in links}, {10}, str(links))  # One per step.
        self.assertEqual({link["payload_copies"] for link in links}, {0}, str(links))
        self.assertEqual({link["carries"] for link in links}, {"steps"})
        self.assertEqual((links[0]["from"], links[5]["to"]), ("coordinator", "coordinator"))
        self.assertEqual(links[1]["to"], links[2]["from"])
        for link in links:
            self.assertTrue(link["transport"].startswith("tcp"), link["transport"])

    def test_take_flags_for_links(self):
        for flags, words in ((("--transport", "udp"), ["--transport", "udp"]),
                             (("--rdma-connect", "tcp"), ["handshake or cm"]),
                             (("--rdma-device", "no_such_card"), ["--rdma-device"]),
                             (("--transport", "tcp", "--rdma-gid", "1"), ["--rdma-gid"])):
            with self.subTest(flags=flags):
                self.fail_with(EXIT_USAGE, words, "run", "-m", STORIES, "-p", "a", "-n", 1,
                               "--local-workers", 1, *flags)
                self.fail_with(EXIT_USAGE, words, "worker", "--listen", "127.0.0.1:0", *flags)

    def test_are_benchmarked(self):
        rows = self.succeed("bench", "-m", STORIES, "-p", 32, "-n", 8, "-r", 2, "-o", "json",
                            "--local-workers", 2).json()
        self.assertEqual({(row["n_prompt"], row["n_gen"]) for row in rows}, {(32, 0), (0, 8)})

    def test_are_benchmarked_with_several_sequences_and_a_slower_link(self):
        for flags in ((), ("--apart",)):
            with self.subTest(flags=flags):
                done = self.succeed("bench", "-m", STORIES, "-p", 32, "-n", 8, "-np", 3, "-r", 2, "-o", "json", "-v",
                                    "--local-workers", 2, "--link-delay", 300, *flags)
                for row in done.json():
                    self.assertEqual((row["n_parallel"], row["apart"]), (3, bool(flags)))
                self.assertIn("delayed by 300 us", done.message)
        self.fail_with(EXIT_USAGE, ["--parallel", "1 to 256"], "bench", "-m", STORIES, "-np", 0)
        self.fail_with(EXIT_USAGE, ["--link-delay", "1000000"], "bench", "-m", STORIES, "--local-workers", 1,
                       "--link-delay", 2000000)


if __name__ == "__main__":
    unittest.main()
