#pragma once
/// The vocabulary of a model file, for the tokenizer, which does not know the file format.

#include "base/result.h"
#include "gguf/gguf_file.h"
#include "gguf/gguf_writer.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocab_data.h"

namespace recua::model {

/// The tokenizer.ggml.* metadata, not yet checked against each other: Tokenizer::create() does
/// that. kNotFound: the file has no vocabulary. kCorrupt: a value has another type. Both name file
/// and key. A byte-level vocabulary that does not say how it splits text is read as "default", with
/// a warning.
Result<tokenizer::VocabData> read_vocab(const gguf::GgufFile& file);

/// The inverse of read_vocab(): adds the tokenizer.ggml.* metadata of data, what is absent or empty
/// left away. A key that the writer has already is a bug (a CHECK of the writer).
void add_vocab(const tokenizer::VocabData& data, gguf::GgufWriter& writer);

/// read_vocab() and Tokenizer::create(); every error names the file.
Result<tokenizer::Tokenizer> load_tokenizer(const gguf::GgufFile& file);

}  // namespace recua::model
