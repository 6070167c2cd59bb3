"""Answers to the puzzles of chapter 05; the names of the chapter are there."""
# ruff: noqa: F821


class add_kernel:
    @triton.jit
    def right_positional_masks(x, y, out, n, BLOCK: tl.constexpr):
        at = tl.program_id(axis=0) * BLOCK + tl.arange(0, BLOCK)
        total = tl.load(x + at, at < n) + tl.load(y + at, at < n)
        tl.store(out + at, total, at < n)

    @triton.jit
    def right_moved_pointers(x, y, out, n, BLOCK: tl.constexpr):
        first = tl.program_id(0) * BLOCK
        places = tl.arange(0, BLOCK)
        inside = places < n - first
        a = tl.load(x + first + places, mask=inside, other=0.0)
        b = tl.load(y + first + places, mask=inside, other=0.0)
        tl.store(out + first + places, a + b, mask=inside)

    @triton.jit
    def right_last_number_again(x, y, out, n, BLOCK: tl.constexpr):
        places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = tl.minimum(places, n - 1)
        total = tl.load(x + inside) + tl.load(y + inside)
        tl.store(out + inside, total)

    @triton.jit
    def wrong_unmasked_loads(x, y, out, n, BLOCK: tl.constexpr):
        places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        total = tl.load(x + places) + tl.load(y + places)
        tl.store(out + places, total, mask=places < n)

    @triton.jit
    def wrong_one_unmasked_load(x, y, out, n, BLOCK: tl.constexpr):
        places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = places < n
        total = tl.load(x + places, mask=inside) + tl.load(y + places)
        tl.store(out + places, total, mask=inside)

    @triton.jit
    def wrong_unmasked_store(x, y, out, n, BLOCK: tl.constexpr):
        places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = places < n
        total = tl.load(x + places, mask=inside) + tl.load(y + places, mask=inside)
        tl.store(out + places, total)

    @triton.jit
    def wrong_first_block_only(x, y, out, n, BLOCK: tl.constexpr):
        places = tl.arange(0, BLOCK)
        inside = places < n
        total = tl.load(x + places, mask=inside) + tl.load(y + places, mask=inside)
        tl.store(out + places, total, mask=inside)

    @triton.jit
    def wrong_blocks_overlap(x, y, out, n, BLOCK: tl.constexpr):
        places = tl.program_id(0) + tl.arange(0, BLOCK)
        inside = places < n
        total = tl.load(x + places, mask=inside) + tl.load(y + places, mask=inside)
        tl.store(out + places, total, mask=inside)

    @triton.jit
    def wrong_full_blocks_only(x, y, out, n, BLOCK: tl.constexpr):
        places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        full = (tl.program_id(0) + 1) * BLOCK <= n
        inside = (places < n) & full
        total = tl.load(x + places, mask=inside) + tl.load(y + places, mask=inside)
        tl.store(out + places, total, mask=inside)


class tile_kernel:
    @triton.jit
    def right_turned_blocks(
        x,
        out,
        row_stride,
        column_stride,
        n_rows,
        n_columns,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        i = tl.arange(0, ROWS)[:, None]
        j = tl.arange(0, COLUMNS)[None, :]
        inside = (i < n_rows) & (j < n_columns)
        tile = tl.load(x + i * row_stride + j * column_stride, inside, 0.0)
        tl.store(out + i * COLUMNS + j, tile)

    @triton.jit
    def right_flat(
        x,
        out,
        row_stride,
        column_stride,
        n_rows,
        n_columns,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        at = tl.arange(0, ROWS * COLUMNS)
        i, j = at // COLUMNS, at % COLUMNS
        inside = (i < n_rows) & (j < n_columns)
        tile = tl.load(x + i * row_stride + j * column_stride, mask=inside, other=0.0)
        tl.store(out + at, tile)

    @triton.jit
    def right_row_by_row(
        x,
        out,
        row_stride,
        column_stride,
        n_rows,
        n_columns,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        j = tl.arange(0, COLUMNS)
        for i in range(ROWS):
            inside = (j < n_columns) & (i < n_rows)
            at = x + i * row_stride + j * column_stride
            tl.store(out + i * COLUMNS + j, tl.load(at, mask=inside, other=0.0))

    @triton.jit
    def wrong_rows_are_n_columns_apart(
        x,
        out,
        row_stride,
        column_stride,
        n_rows,
        n_columns,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
        inside = (i < n_rows) & (j < n_columns)
        tile = tl.load(x + i * n_columns + j, mask=inside, other=0.0)
        tl.store(out + i * COLUMNS + j, tile)

    @triton.jit
    def wrong_columns_are_neighbours(
        x,
        out,
        row_stride,
        column_stride,
        n_rows,
        n_columns,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
        inside = (i < n_rows) & (j < n_columns)
        tile = tl.load(x + i * row_stride + j, mask=inside, other=0.0)
        tl.store(out + i * COLUMNS + j, tile)

    @triton.jit
    def wrong_mask_of_rows_only(
        x,
        out,
        row_stride,
        column_stride,
        n_rows,
        n_columns,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
        inside = (i < n_rows) & (j < 4 * COLUMNS)
        at = x + i * row_stride + (j % n_columns) * column_stride
        tl.store(out + i * COLUMNS + j, tl.load(at, mask=inside, other=0.0))

    @triton.jit
    def wrong_ones_outside(
        x,
        out,
        row_stride,
        column_stride,
        n_rows,
        n_columns,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
        inside = (i < n_rows) & (j < n_columns)
        at = x + i * row_stride + j * column_stride
        tl.store(out + i * COLUMNS + j, tl.load(at, mask=inside, other=1.0))

    @triton.jit
    def wrong_stores_inside_only(
        x,
        out,
        row_stride,
        column_stride,
        n_rows,
        n_columns,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
        inside = (i < n_rows) & (j < n_columns)
        at = x + i * row_stride + j * column_stride
        tile = tl.load(at, mask=inside, other=0.0)
        tl.store(out + i * COLUMNS + j, tile, mask=inside)


class best_kernel:
    @triton.jit
    def right_turns_x(x, y, out, ROWS: tl.constexpr):
        rows, i = tl.arange(0, ROWS)[:, None] * 16, tl.arange(0, 16)[None, :]
        best, new = tl.load(x + rows + (15 - i)), tl.load(y + rows + i)
        tl.store(out + rows + i, tl.maximum(best, new))

    @triton.jit
    def right_where(x, y, out, ROWS: tl.constexpr):
        rows, i = tl.arange(0, ROWS)[:, None] * 16, tl.arange(0, 16)[None, :]
        best, new = tl.load(x + rows + i), tl.load(y + rows + 15 - i)
        tl.store(out + rows + i, tl.where(best > new, best, new))

    @triton.jit
    def right_one_row_after_the_other(x, y, out, ROWS: tl.constexpr):
        i = tl.arange(0, 16)
        for row in range(ROWS):
            best, new = tl.load(x + 16 * row + i), tl.load(y + 16 * row + 15 - i)
            tl.store(out + 16 * row + i, tl.maximum(best, new))

    @triton.jit
    def wrong_side_by_side(x, y, out, ROWS: tl.constexpr):
        rows, i = tl.arange(0, ROWS)[:, None] * 16, tl.arange(0, 16)[None, :]
        tl.store(
            out + rows + i, tl.maximum(tl.load(x + rows + i), tl.load(y + rows + i))
        )

    @triton.jit
    def wrong_always_x(x, y, out, ROWS: tl.constexpr):
        rows, i = tl.arange(0, ROWS)[:, None] * 16, tl.arange(0, 16)[None, :]
        tl.store(out + rows + i, tl.load(x + rows + i))

    @triton.jit
    def wrong_the_worse_half(x, y, out, ROWS: tl.constexpr):
        rows, i = tl.arange(0, ROWS)[:, None] * 16, tl.arange(0, 16)[None, :]
        best, new = tl.load(x + rows + i), tl.load(y + rows + 15 - i)
        tl.store(out + rows + i, tl.minimum(best, new))

    @triton.jit
    def wrong_eight_of_each(x, y, out, ROWS: tl.constexpr):
        rows, i = tl.arange(0, ROWS)[:, None] * 16, tl.arange(0, 16)[None, :]
        best, new = tl.load(x + rows + i), tl.load(y + rows + i % 8)
        tl.store(out + rows + i, tl.where(i < 8, best, new))

    @triton.jit
    def wrong_first_row_only(x, y, out, ROWS: tl.constexpr):
        i = tl.arange(0, 16)
        tl.store(out + i, tl.maximum(tl.load(x + i), tl.load(y + 15 - i)))


class pack_kernel:
    @triton.jit
    def right_times_powers(kept, out, ROWS: tl.constexpr, KEYS: tl.constexpr):
        rows, keys = tl.arange(0, ROWS)[:, None], tl.arange(0, KEYS)[None, :]
        tile = tl.reshape(tl.load(kept + rows * KEYS + keys), [ROWS, KEYS // 32, 32])
        ones = tl.full([32], 1, tl.int32) << tl.arange(0, 32)
        words = tl.sum(tile * ones[None, None, :], axis=2)
        at = rows * (KEYS // 32) + tl.arange(0, KEYS // 32)[None, :]
        tl.store(out + at, words)

    @triton.jit
    def right_one_bit_at_a_time(kept, out, ROWS: tl.constexpr, KEYS: tl.constexpr):
        rows = tl.arange(0, ROWS)[:, None]
        words = tl.arange(0, KEYS // 32)[None, :]
        total = tl.zeros([ROWS, KEYS // 32], tl.int32)
        for i in range(32):
            total = total | (tl.load(kept + rows * KEYS + words * 32 + i) << i)
        tl.store(out + rows * (KEYS // 32) + words, total)

    @triton.jit
    def right_exclusive_or(kept, out, ROWS: tl.constexpr, KEYS: tl.constexpr):
        rows, keys = tl.arange(0, ROWS)[:, None], tl.arange(0, KEYS)[None, :]
        moved = tl.load(kept + rows * KEYS + keys) << (keys % 32)
        words = tl.xor_sum(tl.reshape(moved, [ROWS, KEYS // 32, 32]), 2)
        at = rows * (KEYS // 32) + tl.arange(0, KEYS // 32)[None, :]
        tl.store(out + at, words)

    @triton.jit
    def wrong_bits_turned_round(kept, out, ROWS: tl.constexpr, KEYS: tl.constexpr):
        rows, keys = tl.arange(0, ROWS)[:, None], tl.arange(0, KEYS)[None, :]
        bits = tl.reshape(tl.load(kept + rows * KEYS + keys), [ROWS, KEYS // 32, 32])
        bits = bits << (31 - tl.arange(0, 32))[None, None, :]
        at = rows * (KEYS // 32) + tl.arange(0, KEYS // 32)[None, :]
        tl.store(out + at, tl.sum(bits, 2))

    @triton.jit
    def wrong_only_counts(kept, out, ROWS: tl.constexpr, KEYS: tl.constexpr):
        rows, keys = tl.arange(0, ROWS)[:, None], tl.arange(0, KEYS)[None, :]
        bits = tl.reshape(tl.load(kept + rows * KEYS + keys), [ROWS, KEYS // 32, 32])
        at = rows * (KEYS // 32) + tl.arange(0, KEYS // 32)[None, :]
        tl.store(out + at, tl.sum(bits, 2))

    @triton.jit
    def wrong_words_of_every_other_key(
        kept, out, ROWS: tl.constexpr, KEYS: tl.constexpr
    ):
        rows, keys = tl.arange(0, ROWS)[:, None], tl.arange(0, KEYS)[None, :]
        bits = tl.reshape(tl.load(kept + rows * KEYS + keys), [ROWS, 32, KEYS // 32])
        bits = bits << tl.arange(0, 32)[None, :, None]
        at = rows * (KEYS // 32) + tl.arange(0, KEYS // 32)[None, :]
        tl.store(out + at, tl.sum(bits, 1))

    @triton.jit
    def wrong_first_word_only(kept, out, ROWS: tl.constexpr, KEYS: tl.constexpr):
        rows, keys = tl.arange(0, ROWS)[:, None], tl.arange(0, 32)[None, :]
        bits = tl.load(kept + rows * KEYS + keys) << keys
        words = tl.sum(bits, 1)
        at = tl.arange(0, ROWS) * (KEYS // 32)
        tl.store(out + at, words)

    @triton.jit
    def wrong_one_bit_too_high(kept, out, ROWS: tl.constexpr, KEYS: tl.constexpr):
        rows, keys = tl.arange(0, ROWS)[:, None], tl.arange(0, KEYS)[None, :]
        bits = tl.reshape(tl.load(kept + rows * KEYS + keys), [ROWS, KEYS // 32, 32])
        bits = bits << (tl.arange(0, 32) + 1)[None, None, :]
        at = rows * (KEYS // 32) + tl.arange(0, KEYS // 32)[None, :]
        tl.store(out + at, tl.sum(bits, 2))
