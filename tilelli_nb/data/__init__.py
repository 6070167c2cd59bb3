"""From text to batches of bytes: tokenizer, documents, shards."""
