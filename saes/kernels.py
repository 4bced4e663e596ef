"""Compiled inner loops of the TopK step, for one CPU core (numba).

torch has no fast way to pick k of d_sae per row: `torch.topk` costs more than the encoder's
product. Here one pass takes maxima over strided groups of entries, a bisection on the maxima gives
a lower bound of the k-th largest entry, and only groups above it are looked at again. `saes.topk`
falls back to plain torch where numba is missing or the tensors live on a GPU; tests hold the two
together.

Every kernel releases the GIL, so SAEs in several threads really run side by side.
"""

from __future__ import annotations

import numba
import numpy as np

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")
# Counting may be reassociated, which is what lets it use vector instructions; it stays exact.
_jit_counting = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
# Sums too: in one fixed order on one machine, so reproducible. NaN and infinity keep their meaning.
_jit_sums = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}
)

_ONE = np.int32(0x3F800000)
"""The bits of 1.0: where the search for the first row's threshold begins."""
_LARGEST = np.int32(2**31 - 1)
_FIRST_STEP = np.int32(1 << 20)
"""An eighth of a factor of two in the integer order of floats; rows differ by about so much."""
_LARGEST_STEP = np.int32(1 << 28)


@_jit_counting
def _threshold(keys, n, k, guess):  # type: ignore[no-untyped-def]
    """An integer t >= 1 such that at least k of keys[:n] are >= t, and exactly k unless they tie.

    1 where fewer than k are positive. Brackets outward from `guess`, then bisects.
    """
    low, high = np.int32(1), _LARGEST
    low_known = high_known = False
    step = _FIRST_STEP
    t = guess
    while True:
        count = np.int32(0)
        for i in range(n):
            count += np.int32(keys[i] >= t)
        if count == k:
            return t
        if count > k:
            low, low_known = t, True
        else:
            if t <= 1:
                return np.int32(1)
            high, high_known = t, True
        if high - low <= 1:
            if low_known:
                return low
            t = np.int32(1)
        elif low_known and high_known:
            t = np.int32(low + (high - low) // 2)
        elif low_known:
            t = np.int32(low + min(step, np.int32(high - low - 1)))
            step = min(np.int32(step * 2), _LARGEST_STEP)
        else:
            t = np.int32(high - min(step, np.int32(high - 1)))
            step = min(np.int32(step * 2), _LARGEST_STEP)


@_jit_counting
def select_topk(keys, group, values, indices):  # type: ignore[no-untyped-def]
    """The k largest positive entries of each row, in no order.

    keys [token d_sae] and values [token k] are int32 views of float32 (positive floats and their
    bits have the same order, and negative ones are negative either way); indices [token k] is
    int64. `group` divides d_sae. Slots of a row with fewer than k positive entries get value 0
    and index 0.
    """
    n_rows, width = keys.shape
    k = values.shape[1]
    n_groups = width // group
    maxima = np.empty(n_groups, np.int32)
    # One more than can be found: the slot after the last is written before it is known to count.
    found, found_at = np.empty(width + 1, np.int32), np.empty(width + 1, np.int64)
    bound, bound_found = _ONE, _ONE
    for row in range(n_rows):
        entries = keys[row]
        for i in range(n_groups):
            maxima[i] = entries[i]
        for part in range(1, group):
            others = entries[part * n_groups : (part + 1) * n_groups]
            for i in range(n_groups):
                maxima[i] = max(maxima[i], others[i])
        # k groups have a maximum >= bound, so at least k entries do: none of the rest can be top.
        bound = _threshold(maxima, n_groups, k, bound)
        n_found = np.int64(0)
        for i in range(n_groups):
            if maxima[i] >= bound:
                for part in range(group):
                    at = part * n_groups + i
                    found[n_found] = entries[at]
                    found_at[n_found] = at
                    n_found += np.int64(entries[at] >= bound)
        taken = np.int64(0)
        if n_found > k:
            bound_found = _threshold(found, n_found, k, bound_found)
            for i in range(n_found):
                if found[i] > bound_found:
                    values[row, taken] = found[i]
                    indices[row, taken] = found_at[i]
                    taken += 1
            for i in range(n_found):
                if found[i] == bound_found and taken < k:
                    values[row, taken] = found[i]
                    indices[row, taken] = found_at[i]
                    taken += 1
        else:
            for i in range(n_found):
                values[row, i] = found[i]
                indices[row, i] = found_at[i]
            taken = n_found
        for slot in range(taken, k):
            values[row, slot] = 0
            indices[row, slot] = 0


@_jit
def add_bias_bfloat16(product, bias, bits, out):  # type: ignore[no-untyped-def]
    """out = product + bias. product [token d_sae] is an int16 view of bfloat16.

    bits is an int32 view of out [token d_sae], which is float32, as is bias: a bfloat16 is the
    upper half of a float32. (torch adds mixed types an order of magnitude slower.)
    """
    for row in range(product.shape[0]):
        for i in range(product.shape[1]):
            bits[row, i] = np.int32(product[row, i]) << 16
        for i in range(product.shape[1]):
            out[row, i] += bias[i]


@_jit
def group_by_latent(  # type: ignore[no-untyped-def]
    indices, values, grad_values, starts, tokens, sorted_values, sorted_grads, grad_b_enc
):
    """Counting sort of all slots by latent: the transpose of a sparse [token d_sae] matrix.

    In: indices (int64), values, grad_values [token k]. Out: starts [d_sae] (int64), where each
    latent's slots begin; tokens, sorted_values, sorted_grads [token * k] in that order, tokens
    ascending within a latent; grad_b_enc [d_sae], each latent's sum. Gradients of slots with
    value 0 count as 0.
    """
    n_rows, k = indices.shape
    n_latents = starts.shape[0]
    starts[:] = 0
    grad_b_enc[:] = 0
    for row in range(n_rows):
        for slot in range(k):
            starts[indices[row, slot]] += 1
    begin = 0
    for latent in range(n_latents):
        count = starts[latent]
        starts[latent] = begin
        begin += count
    for row in range(n_rows):
        for slot in range(k):
            latent = indices[row, slot]
            at = starts[latent]
            starts[latent] = at + 1
            value = values[row, slot]
            # A slot at zero is an unused one: ReLU passes no gradient there.
            grad = grad_values[row, slot] if value > 0 else np.float32(0)
            tokens[at] = row
            sorted_values[at] = value
            sorted_grads[at] = grad
            grad_b_enc[latent] += grad
    # Each start has run to its end, which is the next one's start.
    for latent in range(n_latents - 1, 0, -1):
        starts[latent] = starts[latent - 1]
    starts[0] = 0


@_jit
def count_idle(indices, values, idle):  # type: ignore[no-untyped-def]
    """Advance idle [d_sae] (int64), tokens since each latent fired, by one batch."""
    n_tokens = indices.shape[0]
    for latent in range(idle.shape[0]):
        idle[latent] += n_tokens
    for row in range(n_tokens):
        for slot in range(indices.shape[1]):
            if values[row, slot] > 0:
                idle[indices[row, slot]] = 0


@_jit_sums
def scaled_difference(decoded, centred, factor, out, column_sums):  # type: ignore[no-untyped-def]
    """out = factor * (decoded - centred), all [token d_in]; its column sums [d_in].

    Returns the sum of squares of decoded - centred.
    """
    n_rows, d_in = centred.shape
    column_sums[:] = 0
    total = np.float64(0)
    for row in range(n_rows):
        squares = np.float32(0)
        for i in range(d_in):
            error = decoded[row, i] - centred[row, i]
            squares += error * error
            out[row, i] = factor * error
            column_sums[i] += factor * error
        total += squares
    return total


@_jit
def adam(weight, grad, mean, square, beta_mean, beta_square, eps, size, correction):  # type: ignore[no-untyped-def]
    """One Adam update of flat float32 arrays.

    size = lr / (1 - beta_mean^n), correction = 1 / sqrt(1 - beta_square^n).
    """
    b1, c1 = np.float32(beta_mean), np.float32(1 - beta_mean)
    b2, c2 = np.float32(beta_square), np.float32(1 - beta_square)
    rate, factor, floor = np.float32(size), np.float32(correction), np.float32(eps)
    for i in range(weight.shape[0]):
        g = grad[i]
        m = b1 * mean[i] + c1 * g
        v = b2 * square[i] + c2 * g * g
        mean[i] = m
        square[i] = v
        weight[i] -= rate * m / (np.sqrt(v) * factor + floor)


@_jit_sums
def adam_unit_rows(weight, grad, mean, square, beta_mean, beta_square, eps, size, correction):  # type: ignore[no-untyped-def]
    """`adam` for a matrix of unit rows: gradient made orthogonal to its row, row renormalized."""
    for row in range(weight.shape[0]):
        w, g = weight[row], grad[row]
        along = np.float32(0)
        for i in range(w.shape[0]):
            along += g[i] * w[i]
        for i in range(w.shape[0]):
            g[i] -= along * w[i]
        adam(w, g, mean[row], square[row], beta_mean, beta_square, eps, size, correction)
        squares = np.float32(0)
        for i in range(w.shape[0]):
            squares += w[i] * w[i]
        inverse = np.float32(1) / np.sqrt(squares)
        for i in range(w.shape[0]):
            w[i] *= inverse


def group_size(d_sae: int, k: int) -> int:
    """Entries per group for `select_topk`: the largest 2^n <= sqrt(d_sae / k) dividing d_sae."""
    best = 1
    while (2 * best) ** 2 * k <= d_sae and d_sae % (2 * best) == 0:
        best *= 2
    return best
