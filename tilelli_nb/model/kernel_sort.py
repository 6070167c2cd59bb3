"""The k-th largest number of each row, on the chip: with a sorting network in
registers, or by bisection.

A sorting network is a fixed list of pairs to compare. Nothing in it depends on what
the numbers are, so that all threads do the same at the same time, and each comparison
is one max and one min: nothing is counted, looked up or moved through memory.

A tensor core leaves a tile of 64 x 64 scores to its threads in a fixed way: each holds
sixteen scores of a row, and four threads share the row. So we write a tile as sixteen
tensors (ROWS, 4), "the lists": element i of a list is one register of each thread.
"""

import triton
import triton.language as tl

# what one thread holds of a row of 64, and the most that is kept by sorting
LIST: tl.constexpr = tl.constexpr(16)


# Sorting sixteen numbers of one thread


@triton.jit
def exchange(x, other: tl.constexpr, low: tl.constexpr):
    """One layer of the network: places i and i ^ other are compared, and the larger
    number goes where the bit `low` of i is 0.

    The places are written out, so that Triton unrolls them: sixteen instructions.
    """
    return [
        tl.maximum(x[i], x[i ^ other])
        if (i & low) == 0
        else tl.minimum(x[i], x[i ^ other])
        for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    ]


@triton.jit
def merge(x, RUN: tl.constexpr):
    """Runs of RUN numbers that rise and then fall (or the other way round) become
    sorted, largest first.

    Comparing across half a run leaves the larger half in front, and both halves are
    such runs again.
    """
    if RUN >= 16:
        x = exchange(x, 8, 8)  # 0 with 8, 1 with 9, ..., 7 with 15
    if RUN >= 8:
        x = exchange(x, 4, 4)  # 0 with 4, ..., 3 with 7, and 8 with 12, ...
    if RUN >= 4:
        x = exchange(x, 2, 2)
    return exchange(x, 1, 1)


@triton.jit
def sort(x):
    """Sixteen numbers of a thread, largest first: ten layers.

    Sorted pairs make sorted fours, these make eights and these sixteen. i ^ 3, 7 and 15
    turn the second half of a run round, so that it falls and then rises.
    """
    x = exchange(x, 1, 1)  # pairs: one layer
    x = merge(exchange(x, 3, 2), 2)  # fours: 0 with 3, 1 with 2; then one layer more
    x = merge(exchange(x, 7, 4), 4)  # eights: 0 with 7, ..., 3 with 4; then two
    return merge(exchange(x, 15, 8), 8)  # sixteen: 0 with 15, ..., 7 with 8; then three


@triton.jit
def larger_half(x, y):
    """The sixteen largest of two sorted lists, in no order but one that `merge` sorts:
    the best of x against the worst of y, and so on.
    """
    return [
        tl.maximum(x[i], y[15 - i])
        for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    ]


# From a tile to its lists, and from four lists to one


@triton.jit
def halves(x, ROWS: tl.constexpr, N: tl.constexpr):
    """(ROWS, 4, N) -> its even and its odd columns, (ROWS, 4, N / 2) each; (ROWS, 4)
    each from N = 2.
    """
    # tl.split parts a last axis of two: even columns from odd ones
    if N > 2:
        x = tl.reshape(x, [ROWS, 4, N // 2, 2])
    return tl.split(x)


@triton.jit
def lists_of(scores, ROWS: tl.constexpr):
    """(ROWS, 64) -> sixteen tensors (ROWS, 4), the lists; their order does not matter.

    A thread holds columns 2c, 2c + 1 of each group of eight, where c is its number from
    0 to 3: written like this the cut follows the registers, and no number moves.
    """
    x = tl.reshape(scores, [ROWS, 8, 4, 2])  # group, thread, one of its two
    x = tl.reshape(tl.permute(x, (0, 2, 1, 3)), [ROWS, 4, LIST])  # a thread's own
    a, b = halves(x, ROWS, 16)  # (ROWS, 4, 8) each
    a, b, c, d = halves(a, ROWS, 8) + halves(b, ROWS, 8)  # (ROWS, 4, 4) each
    x = (
        halves(a, ROWS, 4)
        + halves(b, ROWS, 4)
        + halves(c, ROWS, 4)
        + halves(d, ROWS, 4)
    )
    a, b, c, d, e, f, g, h = x  # (ROWS, 4, 2) each
    x = (
        halves(a, ROWS, 2)
        + halves(b, ROWS, 2)
        + halves(c, ROWS, 2)
        + halves(d, ROWS, 2)
    )
    y = (
        halves(e, ROWS, 2)
        + halves(f, ROWS, 2)
        + halves(g, ROWS, 2)
        + halves(h, ROWS, 2)
    )
    return x + y


@triton.jit
def neighbour(x, ROWS: tl.constexpr, AXIS: tl.constexpr):
    """(ROWS, 4) -> what the thread beside holds: number c ^ 1 for AXIS 2, c ^ 2 for
    AXIS 1.

    Of two numbers, the sum less mine is yours. As integers, so that it is exact; the
    compiler makes of it one exchange between threads.
    """
    bits = tl.reshape(x.to(tl.int32, bitcast=True), [ROWS, 2, 2])  # c at c // 2, c % 2
    other = tl.sum(bits, AXIS, keep_dims=True) - bits  # if it overflows, it comes back
    return tl.reshape(other, [ROWS, 4]).to(tl.float32, bitcast=True)


@triton.jit
def smallest(x):
    """Of the sixteen, as a tree: half of the numbers wait for nothing."""
    a, b = tl.minimum(x[0], x[1]), tl.minimum(x[2], x[3])
    c, d = tl.minimum(x[4], x[5]), tl.minimum(x[6], x[7])
    e, f = tl.minimum(x[8], x[9]), tl.minimum(x[10], x[11])
    g, h = tl.minimum(x[12], x[13]), tl.minimum(x[14], x[15])
    a, b, c, d = tl.minimum(a, b), tl.minimum(c, d), tl.minimum(e, f), tl.minimum(g, h)
    return tl.minimum(tl.minimum(a, b), tl.minimum(c, d))


@triton.jit
def kth_and_highest(x, ROWS: tl.constexpr, KEEP: tl.constexpr):
    """Sorted lists of the four threads of a row -> its KEEP-th largest number, KEEP up
    to 16, and its largest: (ROWS,) each.
    """
    beside = [neighbour(part, ROWS, 2) for part in x]
    x = merge(larger_half(x, beside), 16)  # of two threads
    beside = [neighbour(part, ROWS, 1) for part in x]
    highest = tl.maximum(x[0], beside[0])  # both lists are still in order
    x = larger_half(x, beside)  # of all four: the row's sixteen largest
    # the sixteenth of sixteen is the smallest, and needs no order
    kth = smallest(x) if KEEP == LIST else merge(x, 16)[KEEP - 1]
    # all four threads hold the same now: max only takes one of them
    return tl.max(kth, 1), tl.max(highest, 1)


# Bisection


@triton.jit
def float_of(code):
    """The fp32 that has this place in the order of all fp32; code: uint32. Codes beyond
    the infinities are NaN.
    """
    # the upper half of the codes is the positive numbers, whose bits rise with them;
    # those of negative ones fall, so that they are all turned round
    return tl.where(code >> 31 == 1, code ^ 0x80000000, code ^ 0xFFFFFFFF).to(
        tl.float32, bitcast=True
    )


@triton.jit
def count_from(scores, low):
    """How many scores of each row are `low` (ROWS,) or more: (ROWS, N) -> (ROWS,)."""
    return tl.sum((scores >= low[:, None]).to(tl.int32), 1)
