"""Compiled inner loops of the AuxK term, for one CPU core (numba); see `saes.auxk`.

Every kernel releases the GIL.
"""

from __future__ import annotations

import numba
import numpy as np

from saes.selection_kernels import group_size, select_row

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")
# As in `saes.kernels`: sums in an order of the compiler's, the same on every run.
_jit_sums = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}
)

_MAGNITUDE = np.int32(0x7FFFFFFF)
_MIDDLE = np.int32(1 << 30)
_GROUP = 8


@_jit
def _pick(entries, group, picked):  # type: ignore[no-untyped-def]
    width, k = entries.shape[1], picked.shape[1]
    n_groups = -(-width // group)
    keys = np.zeros(n_groups * group, np.int32)
    maxima = np.empty(n_groups, np.int32)
    found, found_at = np.empty(len(keys) + 1, np.int32), np.empty(len(keys) + 1, np.int64)
    bounds = np.full(2, _MIDDLE)
    values = np.empty(k, np.int32)
    for row in range(entries.shape[0]):
        for i in range(width):
            bits = entries[row, i]
            # The integer order of negative floats is reversed but for the sign; half of each
            # integer leaves room to make all positive, which costs the last bit.
            ordered = bits ^ ((bits >> np.int32(31)) & _MAGNITUDE)
            keys[i] = (ordered >> np.int32(1)) + _MIDDLE
        select_row(keys, group, maxima, found, found_at, bounds, values, picked[row])


def pick_largest(entries, picked):  # type: ignore[no-untyped-def]
    """picked [token n] (int64): where the n largest entries of each row are, of either sign.

    entries [token width] is an int32 view of float32, width >= n.
    """
    # Rows are padded to whole groups, so any width has groups as large as the best one's.
    padded = -(-entries.shape[1] // _GROUP) * _GROUP
    _pick(entries, group_size(padded, picked.shape[1]), picked)


@_jit_sums
def add_picked(  # type: ignore[no-untyped-def]
    picked, acts, dead, W_dec, grad_out, centred, scale, factor, grad_dec, grad_enc, grad_bias
):
    """Add the gradients of one batch, token by token, through the latents that each token picked.

    picked [token n] into acts [token dead]; dead [dead] into W_dec, grad_dec, grad_enc
    [d_sae d_in] and grad_bias [d_sae]; grad_out and centred [token d_in]. The gradient at a
    token's output is scale * grad_out + factor * its decoded row.
    """
    n_tokens, n = picked.shape
    d_in = centred.shape[1]
    error = np.empty(d_in, np.float32)
    for token in range(n_tokens):
        x = centred[token]
        for i in range(d_in):
            error[i] = scale * grad_out[token, i]
        for slot in range(n):
            at = picked[token, slot]
            value, row = factor * acts[token, at], W_dec[dead[at]]
            for i in range(d_in):
                error[i] += value * row[i]
        for slot in range(n):
            at = picked[token, slot]
            latent = dead[at]
            value, row = acts[token, at], W_dec[latent]
            grad = np.float32(0)
            for i in range(d_in):
                grad += error[i] * row[i]
            to_dec, to_enc = grad_dec[latent], grad_enc[latent]
            for i in range(d_in):
                to_dec[i] += value * error[i]
                to_enc[i] += grad * x[i]
            grad_bias[latent] += grad
