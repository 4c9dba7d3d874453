"""train-tokenizer: vocabularies that recua reads again."""

import json
import unittest

from harness import EXIT_FAILURE, EXIT_USAGE, TestCase

TEXT = "The cat sat on the mat, and the other cat sat there too.\nThen they all sat down.\n" * 20


class TrainTokenizer(TestCase):
    def setUp(self):
        super().setUp()
        self.data = self.scratch / "data.txt"
        self.data.write_text(TEXT)
        self.out = self.scratch / "tok.gguf"

    def train(self, *arguments, data=None):
        return self.succeed("train-tokenizer", "--data", data or self.data, "--out", self.out,
                            *arguments)

    def tokens(self, text):
        return self.succeed("tokenize", "-m", self.out, "--json", "--no-bos",
                            stdin=text.encode()).json()["ids"]

    def test_learns_a_vocabulary_that_tokenize_loads(self):
        answer = self.train("--vocab-size", "280", "--json").json()
        self.assertEqual(answer["vocab_size"], 280)
        ids = self.tokens(TEXT)
        self.assertEqual(len(ids), answer["text_tokens"])
        self.assertLess(2 * len(ids), len(TEXT))
        back = self.succeed("tokenize", "-m", self.out, "--decode",
                            stdin=",".join(map(str, ids)).encode())
        self.assertEqual(back.text, TEXT)
        other = "Ärger, 猫 and \U0001F408"  # Never seen: still has tokens.
        self.assertLess(len(self.tokens("cat")), 3)
        self.assertGreaterEqual(len(self.tokens(other)), 10)

    def test_begins_texts_with_the_end_of_text(self):
        self.train("--vocab-size", "270")
        ids = self.succeed("tokenize", "-m", self.out, "--json", "-p", "cat").json()["ids"]
        self.assertEqual(ids[0], 269)
        self.assertIn("<|endoftext|>", self.succeed("tokenize", "-m", self.out, "-p", "cat").text)

    def test_gives_the_same_bytes_each_time(self):
        self.train("--vocab-size", "320")
        first = self.out.read_bytes()
        self.train("--vocab-size", "320")
        self.assertEqual(self.out.read_bytes(), first)

    def test_learns_from_prompts_and_replies(self):
        data = self.scratch / "data.jsonl"
        lines = [{"prompt": "the cat", "reply": "sat \n there"}] * 5
        data.write_text("\n".join(json.dumps(line) for line in lines))
        self.train("--vocab-size", "300", data=data)
        self.assertLess(len(self.tokens("the cat sat")), 5)
        self.assertEqual(len(self.tokens('{"prompt"')), len('{"prompt"'))

    def test_says_when_the_text_has_no_more_to_merge(self):
        done = self.train("--vocab-size", "10000")
        self.assertIn("Fewer tokens than the 10000", done.text)

    def check_refused(self, content, words, name="bad.txt"):
        data = self.scratch / name
        data.write_bytes(content)
        self.fail_with(EXIT_FAILURE, [name, *words], "train-tokenizer", "--data", data, "--out",
                       self.out)
        self.assertFalse(self.out.exists())

    def test_refuses_data_that_is_no_text(self):
        self.check_refused(b"", ["no text"])
        self.check_refused(b"\n \n", ["no text"])
        self.check_refused(b"abc\0def", ["byte 3", "binary"])
        self.check_refused(b"abc\nd\xff", ["line 2", "UTF-8"])
        self.check_refused(b'{"prompt": "a"}\n', ["line 1", "reply"], name="bad.jsonl")

    def test_refuses_wrong_flags(self):
        self.fail_with(EXIT_USAGE, ["--data"], "train-tokenizer", "--out", self.out)
        self.fail_with(EXIT_USAGE, ["--out"], "train-tokenizer", "--data", self.data)
        self.fail_with(EXIT_USAGE, ["100", "258"], "train-tokenizer", "--data", self.data, "--out",
                       self.out, "--vocab-size", "100")
        self.fail_with(EXIT_FAILURE, ["none-such", "gpt-2"], "train-tokenizer", "--data", self.data,
                       "--out", self.out, "--pre", "none-such")
        self.fail_with(EXIT_FAILURE, ["missing.txt"], "train-tokenizer", "--data",
                       self.scratch / "missing.txt", "--out", self.out)


if __name__ == "__main__":
    unittest.main()
