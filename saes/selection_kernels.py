"""Compiled selection of the largest entries, for one CPU core (numba).

torch has no fast way to pick k of d_sae per row: `torch.topk` costs more than the encoder's
product. Here one pass takes maxima over strided groups of entries, a bisection on the maxima gives
a lower bound of the k-th largest entry, and only groups above it are looked at again. Floats are
compared as their bits: positive ones have the same order, and negative ones are negative either
way.

`saes.selection` falls back to plain torch where numba is missing or the tensors live on a GPU;
tests hold the two together. Every kernel releases the GIL.
"""

from __future__ import annotations

import numba
import numpy as np

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")
# Counting may be reassociated, which is what lets it use vector instructions; it stays exact.
_jit_counting = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})

_ONE = np.int32(0x3F800000)
"""The bits of 1.0: where the search for the first row's threshold begins."""
_LARGEST = np.int32(2**31 - 1)
_FIRST_STEP = np.int32(1 << 20)
"""An eighth of a factor of two in the integer order of floats; rows differ by about so much."""
_LARGEST_STEP = np.int32(1 << 28)
_LANES = 32
"""Entries whose maximum is taken before any of them is looked at."""


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
def select_row(entries, group, maxima, found, found_at, bounds, values, indices):  # type: ignore[no-untyped-def]
    """`select_topk` of one row. `bounds` [2]: the thresholds of the row before, as guesses."""
    n_groups = maxima.shape[0]
    k = values.shape[0]
    for i in range(n_groups):
        maxima[i] = entries[i]
    for part in range(1, group):
        others = entries[part * n_groups : (part + 1) * n_groups]
        for i in range(n_groups):
            maxima[i] = max(maxima[i], others[i])
    # k groups have a maximum >= bound, so at least k entries do: none of the rest can be top.
    bound = _threshold(maxima, n_groups, k, bounds[0])
    bounds[0] = bound
    n_found = np.int64(0)
    for i in range(n_groups):
        if maxima[i] >= bound:
            for part in range(group):
                at = part * n_groups + i
                found[n_found] = entries[at]
                found_at[n_found] = at
                n_found += np.int64(entries[at] >= bound)
    taken = n_found
    if n_found > k:
        bound = _threshold(found, n_found, k, bounds[1])
        bounds[1] = bound
        # Branch-free, because no processor guesses which entries pass. In place: writes never
        # overtake reads. The entries that tie with the bound wait behind the others.
        taken = np.int64(0)
        n_ties = np.int64(0)
        for i in range(n_found):
            entry, at = found[i], found_at[i]
            if entry == bound and n_ties < k:
                values[n_ties] = entry
                indices[n_ties] = at
                n_ties += 1
            found[taken] = entry
            found_at[taken] = at
            taken += np.int64(entry > bound)
        for i in range(k - taken):
            found[taken + i] = values[i]
            found_at[taken + i] = indices[i]
        taken = k
    for i in range(taken):
        values[i] = found[i]
        indices[i] = found_at[i]
    for slot in range(taken, k):
        values[slot] = 0
        indices[slot] = 0


@_jit_counting
def select_topk(keys, group, values, indices):  # type: ignore[no-untyped-def]
    """The k largest positive entries of each row, in no order.

    keys [token d_sae] and values [token k] are int32 views of float32 (positive floats and their
    bits have the same order, and negative ones are negative either way); indices [token k] is
    int64. `group` divides d_sae. Slots of a row with fewer than k positive entries get value 0
    and index 0.
    """
    width = keys.shape[1]
    maxima = np.empty(width // group, np.int32)
    # One more than can be found: the slot after the last is written before it is known to count.
    found, found_at = np.empty(width + 1, np.int32), np.empty(width + 1, np.int64)
    bounds = np.full(2, _ONE)
    for row in range(keys.shape[0]):
        select_row(keys[row], group, maxima, found, found_at, bounds, values[row], indices[row])


@_jit
def add_bias_bfloat16(product, bias, keys):  # type: ignore[no-untyped-def]
    """Bits of product + bias for one row, added in float32; see `select_topk_bfloat16`."""
    floats = keys.view(np.float32)
    for i in range(product.shape[0]):
        keys[i] = np.int32(product[i]) << 16
    for i in range(product.shape[0]):
        floats[i] += bias[i]


@_jit_counting
def select_topk_bfloat16(product, bias, group, values, indices):  # type: ignore[no-untyped-def]
    """`select_topk` of product + bias, added in float32 one row at a time.

    product [token d_sae] is an int16 view of bfloat16, the upper half of a float32; bias is
    float32. (torch adds mixed types an order of magnitude slower, and through memory.)
    """
    width = product.shape[1]
    maxima = np.empty(width // group, np.int32)
    found, found_at = np.empty(width + 1, np.int32), np.empty(width + 1, np.int64)
    bounds = np.full(2, _ONE)
    keys = np.empty(width, np.int32)
    for row in range(product.shape[0]):
        add_bias_bfloat16(product[row], bias, keys)
        select_row(keys, group, maxima, found, found_at, bounds, values[row], indices[row])


@_jit_counting
def gather_above(keys, first_row, bound, found, found_at, n_found):  # type: ignore[no-untyped-def]
    """Append the entries of one row that exceed `bound`, and their flat positions, in order.

    Returns the new number found. Needs room for the whole row and one more.
    """
    width = keys.shape[0]
    base = np.int64(first_row) * width
    for start in range(0, width, _LANES):
        stop = min(start + _LANES, width)
        largest = keys[start]
        for i in range(start, stop):
            largest = max(largest, keys[i])
        if largest > bound:
            for i in range(start, stop):
                found[n_found] = keys[i]
                found_at[n_found] = base + i
                n_found += np.int64(keys[i] > bound)
    return n_found


@_jit_counting
def keep_largest(found, found_at, n_found, wanted):  # type: ignore[no-untyped-def]
    """Reduce found[:n_found], all positive, to its `wanted` largest, in order; first ties stay.

    Returns how many are left and their least.
    """
    if n_found <= wanted:
        least = _LARGEST
        for i in range(n_found):
            least = min(least, found[i])
        return n_found, least
    bound = _threshold(found, n_found, wanted, found[0])
    n_above = np.int64(0)
    for i in range(n_found):
        n_above += np.int64(found[i] > bound)
    ties = wanted - n_above
    kept = np.int64(0)
    least = _LARGEST
    for i in range(n_found):
        entry = found[i]
        is_tie = entry == bound
        if entry > bound or (is_tie and ties > 0):
            ties -= np.int64(is_tie)
            found[kept] = entry
            found_at[kept] = found_at[i]
            kept += 1
            least = min(least, entry)
    return kept, least


@_jit
def gather_rows(keys, first_row, bound, found, found_at, n_found, wanted):  # type: ignore[no-untyped-def]
    """`gather_above` over a block of rows, thinned out with `keep_largest` when room runs short.

    Returns the new number found and the bound, below which nothing can be among the largest.
    """
    width = keys.shape[1]
    for row in range(keys.shape[0]):
        if n_found + width >= found.shape[0]:
            n_found, bound = keep_largest(found, found_at, n_found, wanted)
        n_found = gather_above(keys[row], first_row + row, bound, found, found_at, n_found)
    return n_found, bound


@_jit
def gather_rows_bfloat16(  # type: ignore[no-untyped-def]
    product, bias, first_row, bound, found, found_at, n_found, wanted
):
    """`gather_rows` of product (int16 view of bfloat16) + bias (float32)."""
    width = product.shape[1]
    keys = np.empty(width, np.int32)
    for row in range(product.shape[0]):
        if n_found + width >= found.shape[0]:
            n_found, bound = keep_largest(found, found_at, n_found, wanted)
        add_bias_bfloat16(product[row], bias, keys)
        n_found = gather_above(keys, first_row + row, bound, found, found_at, n_found)
    return n_found, bound


def group_size(d_sae: int, k: int) -> int:
    """Entries per group for `select_topk`: the largest 2^n <= sqrt(d_sae / k) dividing d_sae."""
    best = 1
    while (2 * best) ** 2 * k <= d_sae and d_sae % (2 * best) == 0:
        best *= 2
    return best
