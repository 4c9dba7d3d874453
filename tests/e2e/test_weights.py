"""Where a worker's weights come from: its own file, its cache, or the coordinator."""

import unittest

from harness import (EXIT_FAILURE, MODELS, STORIES, TestCase, addresses, ids_flag, over, random_model,
                     wait_until)


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


def bytes_in(folder):
    return sum(path.stat().st_size for path in files_in(folder))


class Weights(TestCase):
    def test_a_worker_with_the_file_fetches_nothing(self):
        worker = self.worker(models=MODELS)
        self.check_stories("--workers", worker.address)
        self.assertLess(bytes_in(worker.cache), STORIES.stat().st_size // 10)

    def test_a_worker_without_the_file_fetches_and_keeps_it(self):
        worker = self.worker(models=None)
        self.check_stories("--workers", worker.address)
        # Tensors only, so a little less than the file.
        self.assertGreater(bytes_in(worker.cache), STORIES.stat().st_size // 2)
        kept = {path: path.stat().st_mtime_ns for path in files_in(worker.cache)
                if path.stat().st_size > 1000}
        again = self.worker(models=None, cache=worker.cache)
        self.check_stories("--workers", again.address)
        for path, changed_ns in kept.items():
            self.assertEqual(path.stat().st_mtime_ns, changed_ns, f"{path} was fetched again")

    def test_missing_chunks_are_pushed_on_a_channel(self):
        worker = self.worker(models=None)
        answer = self.succeed("run", "--json", "-m", STORIES, "-p", "a", "-n", 1, "--workers",
                              worker.address).json()
        weights = [link for link in answer["links"] if link["carries"] == "weights"]
        self.assertEqual([link["end"] for link in weights], ["sender", "receiver"])
        for link in weights:
            self.assertGreater(link["bytes"], STORIES.stat().st_size // 2)
            if link["end"] == "sender" or not link["transport"].startswith("tcp"):
                self.assertEqual(link["payload_copies"], 0, str(link))

    def test_each_worker_fetches_its_own_slice_only(self):
        workers = self.workers(2, models=None)
        self.check_stories("--workers", addresses(workers), "--split", "1,4")
        self.assertLess(bytes_in(workers[0].cache), bytes_in(workers[1].cache))

    def test_no_fetch_says_what_is_missing(self):
        worker = self.worker(models=None)
        self.fail_with(EXIT_FAILURE, [worker.address], "run", "-m", STORIES, "-p", "a",
                       "--workers", worker.address, "--no-fetch")
        self.check_alive(worker)

    def test_another_file_of_the_same_name_is_not_believed(self):
        folder = self.folder_with_another_stories()
        worker = self.worker(models=folder)
        self.check_stories("--workers", worker.address)

    def test_a_file_of_that_name_that_is_no_model_is_not_believed(self):
        folder = self.scratch / "models"
        folder.mkdir()
        for data in (b"", b"GGUF", b"not a model" * 1000):
            with self.subTest(size=len(data)):
                (folder / STORIES.name).write_bytes(data)
                worker = self.worker(models=folder)
                self.check_stories("--workers", worker.address)

    def test_a_file_that_changes_after_it_was_hashed_is_noticed(self):
        folder = self.scratch / "models"
        folder.mkdir()
        copy = folder / STORIES.name
        copy.write_bytes(STORIES.read_bytes())
        worker = self.worker(models=folder)
        self.check_stories("--workers", worker.address)
        data = bytearray(copy.read_bytes())
        data[-1000:] = bytes(1000)
        copy.unlink()  # Another inode, as when a new version is moved into place.
        copy.write_bytes(data)
        self.check_stories("--workers", worker.address)

    def test_a_damaged_cache_is_fetched_again(self):
        worker = self.worker(models=None)
        self.check_stories("--workers", worker.address)
        worker.kill()
        for path in files_in(worker.cache):
            data = bytearray(path.read_bytes())
            if len(data) > 1000:
                data[len(data) // 2] ^= 0xFF
                path.write_bytes(data)
        again = self.worker(models=None, cache=worker.cache)
        self.check_stories("--workers", again.address, "--verify")

    def test_a_truncated_cache_is_fetched_again(self):
        worker = self.worker(models=None)
        self.check_stories("--workers", worker.address)
        worker.kill()
        for path in files_in(worker.cache):
            path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
        again = self.worker(models=None, cache=worker.cache)
        self.check_stories("--workers", again.address)

    def test_weights_larger_than_a_chunk_are_fetched_whole(self):
        model = random_model(layers=2, dim=1024, ffn=4096, vocab=4096, type_name="F16")
        flags = ["run", "--json", "-m", model, "--prompt-ids", ids_flag(range(3, 23)), "-n", 10,
                 "--temp", 0, "--ignore-eos", "--logprobs", 4]
        alone = self.succeed(*flags).json()
        workers = self.workers(2, models=None)
        spread = self.succeed(*flags, *over(workers)).json()
        self.assertEqual(spread["logprobs"], alone["logprobs"])

    def test_a_run_that_was_interrupted_is_taken_up_again(self):
        model = random_model(layers=16, dim=1024, ffn=4096, type_name="F16")
        worker = self.worker(models=None)
        run = self.start("run", "-m", model, "-p", "a", "-n", 1, "--workers", worker.address)
        wait_until(lambda: not run.running or files_in(worker.cache), "the first weights to arrive")
        run.kill()
        self.check_alive(worker)
        self.succeed("run", "-m", model, "-p", "a", "-n", 1, "--workers", worker.address)


if __name__ == "__main__":
    unittest.main()
