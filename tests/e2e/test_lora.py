"""--lora: a model with an adapter, on one machine and spread over workers."""

import random
import struct
import unittest

from harness import (EXIT_FAILURE, EXIT_USAGE, STORIES, TestCase, addresses, over, stories)

HIDDEN, KV, FFN, LAYERS, RANK = 64, 32, 172, 5, 4  # Of the stories model; the rank is ours.
SHAPES = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, KV), "attn_v": (HIDDEN, KV),
          "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (HIDDEN, FFN), "ffn_up": (HIDDEN, FFN),
          "ffn_down": (FFN, HIDDEN)}


def text(value):
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def padded(data):
    return data + bytes(-len(data) % 32)


def gguf(metadata, tensors):
    """A GGUF file. tensors: name, shape with the fastest dimension first, F32 numbers."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        is_text = isinstance(value, str)
        out += text(key) + (struct.pack("<I", 8) + text(value) if is_text
                            else struct.pack("<If", 6, value))
    offset = 0
    for name, shape, numbers in tensors:
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)
        offset += len(padded(bytes(4 * len(numbers))))
    out = padded(out)
    for _, _, numbers in tensors:
        out += padded(struct.pack(f"<{len(numbers)}f", *numbers))
    return out


def adapter(alpha=8.0, **more):
    """Pairs for every matrix of the stories model, strong enough to change what it says."""
    rng = random.Random(1)
    tensors = []
    for layer in range(LAYERS):
        for name, (n_in, n_out) in SHAPES.items():
            for ending, shape in (("a", (n_in, RANK)), ("b", (RANK, n_out))):
                numbers = [rng.gauss(0, 0.08) for _ in range(shape[0] * shape[1])]
                tensors.append((f"blk.{layer}.{name}.weight.lora_{ending}", shape, numbers))
    metadata = {"general.type": "adapter", "adapter.type": "lora",
                "general.architecture": "llama", "adapter.lora.alpha": alpha, **more}
    return metadata, tensors


class Lora(TestCase):
    def setUp(self):
        super().setUp()
        self.path = self.scratch / "adapter.gguf"
        self.path.write_bytes(gguf(*adapter()))
        self.ids = stories()["cases"][0]["prompt_ids"]

    def answer(self, *arguments):
        return self.generate(self.ids, 40, "--logprobs", 4, *arguments)

    def test_changes_the_answer_as_much_as_asked(self):
        plain = self.answer()
        full = self.answer("--lora", self.path)
        self.assertNotEqual(full["ids"], plain["ids"])
        self.assertEqual(self.answer("--lora", f"{self.path}:1")["logprobs"], full["logprobs"])
        self.assertEqual(self.answer("--lora", f"{self.path}:0")["logprobs"], plain["logprobs"])
        half = self.answer("--lora", f"{self.path}:0.5")
        self.assertNotIn(half["logprobs"], [full["logprobs"], plain["logprobs"]])

    def test_a_layer_split_gives_the_bits_of_one_machine(self):
        alone = self.answer("--lora", self.path)
        workers = self.workers(3)
        for n in (1, 2, 3):
            with self.subTest(workers=n):
                spread = self.answer("--lora", self.path, *over(workers[:n]))
                self.assertEqual(spread["logprobs"], alone["logprobs"])
        # The workers remember chunks by hash: another scale is another adapter.
        half = self.answer("--lora", f"{self.path}:0.5")
        spread = self.answer("--lora", f"{self.path}:0.5", *over(workers[:2]))
        self.assertEqual(spread["logprobs"], half["logprobs"])
        plain = self.answer(*over(workers[:2]))
        self.assertEqual(plain["ids"], stories()["cases"][0]["greedy_ids"][:40])

    def test_a_tensor_split_gives_the_tokens_of_one_machine(self):
        alone = self.answer("--lora", self.path)
        spread = self.answer("--lora", self.path, "--workers", addresses(self.workers(2)), "--tp", 2)
        self.assertEqual(spread["ids"], alone["ids"])

    def test_perplexity_and_bench_take_it(self):
        story = self.scratch / "story.txt"
        story.write_text("Once upon a time there was a little dog. He liked to play in the park.")
        def nll(*arguments):
            return self.succeed("perplexity", "-m", STORIES, "-f", story, "-c", 32, "--json",
                                *arguments).json()["nll"]
        plain = nll()
        self.assertGreater(nll("--lora", self.path), plain + 0.01)
        self.assertEqual(nll("--lora", f"{self.path}:0"), plain)
        self.succeed("bench", "-m", STORIES, "--lora", self.path, "-p", 16, "-n", 4, "-r", 1)

    def refuse(self, words, metadata, tensors, code=EXIT_FAILURE):
        path = self.scratch / "bad.gguf"
        path.write_bytes(gguf(metadata, tensors))
        self.fail_with(code, ["bad.gguf", *words], "run", "-m", STORIES, "-p", "Once", "--lora", path)

    def test_refuses_an_adapter_that_does_not_fit(self):
        metadata, tensors = adapter()
        self.refuse(["general.architecture", "qwen2", "llama"],
                    {**metadata, "general.architecture": "qwen2"}, tensors)
        self.refuse(["general.type", "adapter"], {**metadata, "general.type": "model"}, tensors)
        self.refuse(["blk.0.attn_q.weight.lora_a", "lora_b"], metadata, tensors[:1])
        name, shape, numbers = tensors[0]
        self.refuse([name, "[4, 64]", "the model's blk.0.attn_q.weight of [64, 64]"], metadata,
                    [(name, shape[::-1], numbers), *tensors[1:]])
        self.refuse([name, "not finite"], metadata,
                    [(name, shape, [float("nan"), *numbers[1:]]), *tensors[1:]])
        self.refuse(["blk.77.attn_q.weight", "another model"], metadata,
                    [(each[0].replace("blk.0", "blk.77"), *each[1:]) for each in tensors[:2]])

    def test_refuses_what_is_no_adapter(self):
        self.fail_with(EXIT_FAILURE, ["none.gguf"], "run", "-m", STORIES, "-p", "Once", "--lora",
                       self.scratch / "none.gguf")
        self.fail_with(EXIT_FAILURE, ["general.type"], "run", "-m", STORIES, "-p", "Once", "--lora",
                       STORIES)
        self.fail_with(EXIT_USAGE, ["--lora", "SCALE"], "run", "-m", STORIES, "-p", "Once", "--lora",
                       f"{self.path}:strong")


if __name__ == "__main__":
    unittest.main()
