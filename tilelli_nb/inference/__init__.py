"""From logits to text: sampling, decoding, scores, and weights made ready for it."""
