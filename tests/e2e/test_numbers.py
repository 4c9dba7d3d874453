"""What products of rounded numbers do to a model that has learned something.

RECUA_TEXTS names a folder with texts as *.txt.xz (default: ../shared/data/text); where there is none, the story beside
the model is all.
"""

import lzma
import os
import pathlib
import unittest

from harness import F32_CACHE, MODELS, ROOT, STORIES, TestCase

TEXTS = pathlib.Path(os.environ.get("RECUA_TEXTS", ROOT.parent / "shared" / "data" / "text"))
# The end of a text, about 20000 tokens of stories260K.
TEXT_BYTES = 40000


class Perplexity(TestCase):
    def perplexity(self, model, text):
        return self.succeed("perplexity", "--json", "-m", model, "-f", text, "-c", 512, *F32_CACHE,
                            seconds=300.0).json()["ppl"]

    def check_q8_0(self, text):
        """Within 0.2 % of the same weights as F32: what is left is the rounding of activations."""
        rounded, exact = self.scratch / "q8_0.gguf", self.scratch / "f32.gguf"
        if not exact.exists():
            self.succeed("quantize", STORIES, rounded, "Q8_0")
            self.succeed("quantize", rounded, exact, "F32")
        want = self.perplexity(exact, text)
        ratio = self.perplexity(rounded, text) / want
        self.assertAlmostEqual(ratio, 1.0, delta=0.002, msg=f"{text}: F32 gives {want}")
        self.assertNotEqual(ratio, 1.0, "nothing was rounded")

    def test_q8_0_keeps_it_on_the_story(self):
        self.check_q8_0(MODELS / "story.txt")

    @unittest.skipUnless(TEXTS.is_dir(), f"{TEXTS} is not there")
    def test_q8_0_keeps_it_on_real_texts(self):
        packed = sorted(TEXTS.glob("*.txt.xz"))
        self.assertTrue(packed, f"no *.txt.xz in {TEXTS}")
        for path in packed:
            with self.subTest(text=path.name):
                text = self.scratch / path.stem
                text.write_bytes(lzma.decompress(path.read_bytes())[-TEXT_BYTES:])
                self.check_q8_0(text)


if __name__ == "__main__":
    unittest.main()
