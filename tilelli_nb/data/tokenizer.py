"""Byte-level tokenization: the identity. A text is its UTF-8 bytes, a token is a byte,
the vocabulary is 256.
"""

import codecs
import operator
from collections.abc import Iterable, Iterator
from typing import Any

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
        if isinstance(text, str):
            # half of a surrogate pair is not UTF-8; its three bytes are kept all the
            # same, so that no str is refused
            text = text.encode("utf-8", errors="surrogatepass")
        return list(text)

    def to_bytes(self, ids: Iterable[int]) -> bytes:
        """The ids as bytes. Raises TokenError for anything outside 0..255."""
        if getattr(ids, "ndim", 1) != 1:
            raise TokenError(
                f"the ids have {ids.ndim} dimensions, not one",
                "take one row, such as ids[0].tolist(); a batch of prompts is a list "
                "of lists: ids.tolist()",
            )
        ids = [single(i, position) for position, i in enumerate(ids)]
        for position, i in enumerate(ids):
            if not 0 <= i < self.vocab_size:
                raise TokenError(
                    f"token {i} at position {position} is not a byte",
                    "give ids between 0 and 255, as encode() returns them",
                )
        return bytes(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. Bytes that are not valid UTF-8 become U+FFFD, one per
        broken sequence. Raises TokenError for an id outside 0..255.
        """
        return self.to_bytes(ids).decode("utf-8", errors="replace")

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yields text as the bytes of `ids` arrive, never half a character; the pieces
        join to decode(ids).
        """
        # it keeps the first bytes of a character until the last one is there
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i in ids:
            piece = decoder.decode(self.to_bytes([i]))
            if piece:
                yield piece
        # what is left of a character that was cut off
        rest = decoder.decode(b"", final=True)
        if rest:
            yield rest


def single(token: Any, position: int) -> int:
    """The token as an int. Raises TokenError for anything but one whole number."""
    try:
        if getattr(token, "ndim", 0) == 0:
            return operator.index(token)
    except (TypeError, RuntimeError):  # RuntimeError: a tensor of PyTorch's
        pass
    raise TokenError(
        f"what stands at position {position} is no token but {token!r:.60}",
        "give ids between 0 and 255, as encode() returns them",
    )
