"""Byte-level tokenization: the identity. A text is its UTF-8 bytes, a token is a byte,
the vocabulary is 256.
"""

import codecs
from collections.abc import Iterable, Iterator
from ..errors import TokenError


class ByteTokenizer:
    """Text to bytes and back. There is nothing to train, nothing to download, and no
    unknown token.

    >>> ByteTokenizer().encode("hello")
    [104, 101, 108, 108, 111]
    """

    vocab_size = 256

    def encode(self, text: str | bytes) -> list[int]:
        """The UTF-8 bytes of `text` as a list of ints, each 0..255. Bytes pass through
        unchanged.
        """
        return list(
            text
            if isinstance(text, bytes)
            else text.encode("utf-8", errors="surrogatepass")
        )

    def to_bytes(self, ids: Iterable[int]) -> bytes:
        """The ids as bytes. Raises TokenError for anything outside 0..255."""
        ids = [int(i) for i in ids]
        for position, i in enumerate(ids):
            if not 0 <= i < self.vocab_size:
                raise TokenError(
                    f"token {i} at position {position} is not a byte",
                    "give ids between 0 and 255, as encode() returns them",
                )
        return bytes(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. Bytes that are not valid UTF-8 become U+FFFD, one per
        broken sequence.
        """
        return self.to_bytes(ids).decode("utf-8", errors="replace")

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yields text as the bytes of `ids` arrive, never half a character; the pieces
        join to decode(ids).
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i in ids:
            if piece := decoder.decode(self.to_bytes([i])):
                yield piece
        if rest := decoder.decode(b"", final=True):
            yield rest
