"""Answers to the exercises of chapter 03; the names of the chapter are there."""
# ruff: noqa: F821


class listen:
    def right_numpy(layer, D, width):
        clap = torch.zeros(width, D)
        clap[0] = 1
        return layer(clap).numpy()[::-1].T

    def right_lists(layer, D, width):
        clap = torch.zeros(width, D)
        clap[0] = 1
        echo = layer(clap).tolist()
        return [[echo[width - 1 - i][d] for i in range(width)] for d in range(D)]

    def right_one_channel_at_a_time(layer, D, width):
        rows = []
        for d in range(D):
            clap = torch.zeros(2 * width, D)
            clap[width, d] = 1
            rows.append(layer(clap)[width:, d].flip(0))
        return torch.stack(rows)

    def right_by_gradient(layer, D, width):
        y = torch.zeros(width, D, requires_grad=True)
        (heard,) = torch.autograd.grad(layer(y)[-1].sum(), y)
        return heard.T

    def wrong_present_first(layer, D, width):
        clap = torch.zeros(width, D)
        clap[0] = 1
        return layer(clap).T

    def wrong_taps_by_channels(layer, D, width):
        clap = torch.zeros(width, D)
        clap[0] = 1
        return layer(clap).flip(0)

    def wrong_looks_up_the_secret(layer, D, width):
        return secret

    def wrong_claps_at_the_end(layer, D, width):
        clap = torch.zeros(width, D)
        clap[-1] = 1
        return layer(clap).flip(0).T

    def wrong_all_ones(layer, D, width):
        return layer(torch.ones(width, D)).flip(0).T

    def wrong_five_taps_always(layer, D, width):
        clap = torch.zeros(5, D)
        clap[0] = 1
        return layer(clap).flip(0).T


class mended:
    def right_pads_both_and_cuts(y, weight):
        D, width = weight.shape
        heard = F.conv1d(y.mT[None], weight[:, None], padding=width - 1, groups=D)
        return heard[0, :, : len(y)].mT

    def right_zeros_before(y, weight):
        D, width = weight.shape
        past = torch.cat((torch.zeros(width - 1, D), y))
        return F.conv1d(past.T, weight[:, None], groups=D).T

    def right_numpy(y, weight):
        D, width = weight.shape
        past = F.pad(y, (0, 0, width - 1, 0))
        return F.conv1d(past.mT, weight[:, None], groups=D).mT.numpy()

    def right_lists(y, weight):
        D, width = weight.shape
        past = F.pad(y, (0, 0, width - 1, 0))
        return F.conv1d(past.mT, weight[:, None], groups=D).mT.tolist()

    def wrong_centred(y, weight):
        return centred_conv(y, weight)

    def wrong_pads_the_end(y, weight):
        D, width = weight.shape
        ahead = F.pad(y, (0, 0, 0, width - 1))
        return F.conv1d(ahead.mT, weight[:, None], groups=D).mT

    def wrong_kernel_turned(y, weight):
        D, width = weight.shape
        past = F.pad(y, (0, 0, width - 1, 0))
        return F.conv1d(past.mT, weight.flip(1)[:, None], groups=D).mT

    def wrong_four_zeros_always(y, weight):
        past = F.pad(y, (0, 0, 4, 0))
        return F.conv1d(past.mT, weight[:, None], groups=len(weight)).mT

    def wrong_no_padding(y, weight):
        return F.conv1d(y.mT, weight[:, None], groups=len(weight)).mT

    def wrong_too_far_back(y, weight):
        D, width = weight.shape
        past = F.pad(y, (0, 0, width, 0))[: len(y) + width - 1]
        return F.conv1d(past.mT, weight[:, None], groups=D).mT


class reach:
    def right_loop(layers):
        total = 1
        for width, dilation in layers:
            total += dilation * (width - 1)
        return total

    def right_measured(layers):
        return measured_reach(layers)

    def right_tensor(layers):
        pairs = torch.tensor(layers).reshape(-1, 2)
        return 1 + ((pairs[:, 0] - 1) * pairs[:, 1]).sum()

    def right_numpy(layers):
        import numpy as np

        pairs = np.array(layers).reshape(-1, 2)
        return 1 + (pairs[:, 0] - 1) @ pairs[:, 1]

    def wrong_without_the_present(layers):
        return sum((width - 1) * dilation for width, dilation in layers)

    def wrong_taps_instead_of_gaps(layers):
        return 1 + sum(width * dilation for width, dilation in layers)

    def wrong_no_dilation(layers):
        return 1 + sum(width - 1 for width, _ in layers)

    def wrong_multiplies(layers):
        return math.prod((width - 1) * dilation + 1 for width, dilation in layers)

    def wrong_only_the_widest(layers):
        return 1 + max(((w - 1) * d for w, d in layers), default=0)


class compose:
    def right_numpy_rows(a, b):
        import numpy as np

        return [np.convolve(x, y) for x, y in zip(a.numpy(), b.numpy(), strict=True)]

    def right_conv1d(a, b):
        past = b.shape[1] - 1
        out = F.conv1d(a[None], b.flip(1)[:, None], padding=past, groups=len(a))
        return out[0]

    def right_polynomials_in_lists(a, b):
        rows = []
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            row = [0.0] * (len(x) + len(y) - 1)
            for i, p in enumerate(x):
                for j, q in enumerate(y):
                    row[i + j] += p * q
            rows.append(row)
        return rows

    def right_fourier(a, b):
        n = a.shape[1] + b.shape[1] - 1
        return torch.fft.irfft(torch.fft.rfft(a, n) * torch.fft.rfft(b, n), n)

    def wrong_correlates(a, b):
        both = torch.zeros(len(a), a.shape[1] + b.shape[1] - 1)
        for i in range(a.shape[1]):
            for j in range(b.shape[1]):
                both[:, i + j] += a[:, i] * b[:, -1 - j]
        return both

    def wrong_adds(a, b):
        return F.pad(a, (b.shape[1] - 1, 0)) + F.pad(b, (a.shape[1] - 1, 0))

    def wrong_one_too_wide(a, b):
        both = torch.zeros(len(a), a.shape[1] + b.shape[1])
        for i in range(a.shape[1]):
            for j in range(b.shape[1]):
                both[:, i + j + 1] += a[:, i] * b[:, j]
        return both

    def wrong_overwrites(a, b):
        both = torch.zeros(len(a), a.shape[1] + b.shape[1] - 1)
        for i in range(a.shape[1]):
            for j in range(b.shape[1]):
                both[:, i + j] = a[:, i] * b[:, j]
        return both

    def wrong_first_channel_for_all(a, b):
        import numpy as np

        return [np.convolve(a[0].numpy(), b[0].numpy())] * len(a)
