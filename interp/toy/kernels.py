"""Compiled inner loops of the toy model, for one CPU core (numba); every one releases the GIL."""

from __future__ import annotations

import numba
import numpy as np

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")
# Sums may be reassociated, which is what lets them use vector instructions: in one fixed order on
# one machine, so reproducible. NaN and infinity keep their meaning.
_jit_sums = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}
)


@_jit
def bernoulli_entries(generator, mean_gaps, n_rows):  # type: ignore[no-untyped-def]
    """Rows and features (int64) of the ones in a [row feature] matrix of Bernoulli draws.

    Down a column the gaps between ones are geometric: floor of an exponential number with mean
    `mean_gaps[i]` = -1 / log(1 - p_i). One draw per one and column; features ascend, then rows.
    """
    capacity = 1024
    rows = np.empty(capacity, np.int64)
    features = np.empty(capacity, np.int64)
    count = 0
    for i in range(mean_gaps.shape[0]):
        # In floats until it is known to lie in the column: gaps of rare features overflow integers.
        place = np.floor(generator.standard_exponential() * mean_gaps[i])
        while place < n_rows:
            if count == capacity:
                capacity *= 2
                more_rows, more_features = (
                    np.empty(capacity, np.int64),
                    np.empty(capacity, np.int64),
                )
                more_rows[:count], more_features[:count] = rows, features
                rows, features = more_rows, more_features
            rows[count], features[count] = np.int64(place), i
            count += 1
            place += 1 + np.floor(generator.standard_exponential() * mean_gaps[i])
    return rows[:count].copy(), features[:count].copy()


@_jit
def compress_rows(rows, features, values, n_rows, n_features):  # type: ignore[no-untyped-def]
    """Entries in the order of `bernoulli_entries` -> active, starts, columns, values of a Batch."""
    column_of = np.full(n_features, -1, np.int64)
    rank = np.full(n_rows, -1, np.int64)
    length = np.zeros(n_rows, np.int64)
    n_active = 0
    n_kept = 0
    for e in range(rows.shape[0]):
        if column_of[features[e]] < 0:
            column_of[features[e]] = n_active
            n_active += 1
        if rank[rows[e]] < 0:  # in the order of first features
            rank[rows[e]] = n_kept
            n_kept += 1
        length[rank[rows[e]]] += 1
    starts = np.zeros(n_kept + 1, np.int64)
    for r in range(n_kept):
        starts[r + 1] = starts[r] + length[r]
    active = np.empty(n_active, np.int64)
    place = starts[:-1].copy()
    columns = np.empty(rows.shape[0], np.int64)
    sorted_values = np.empty_like(values)
    for e in range(rows.shape[0]):
        r = rank[rows[e]]
        columns[place[r]] = column_of[features[e]]
        sorted_values[place[r]] = values[e]
        place[r] += 1
        active[column_of[features[e]]] = features[e]
    return active, starts, columns, sorted_values


@_jit_sums
def loss_and_gradients(  # type: ignore[no-untyped-def]
    gram, bias, active, starts, columns, values, n_empty, gram_grad, bias_grad, row
):
    """Sum over rows and outputs of (y - x)^2, and half its gradients.

    gram [d n] = W[active] W^T, so that a row's pre-activation is bias plus its entries' rows of
    gram, scaled: no product with W per row. Out: gram_grad [d n], bias_grad [n], half the gradients
    of the sum; `row` [n] is scratch.
    """
    n = bias.shape[0]
    zero = bias.dtype.type(0)
    gram_grad[:] = zero
    rest = 0.0
    for j in range(n):  # rows without an entry: y = ReLU(bias), x = 0
        y = max(bias[j], zero)
        rest += y * y
        bias_grad[j] = n_empty * y
    total = n_empty * rest
    for r in range(starts.shape[0] - 1):
        first, end = starts[r], starts[r + 1]
        value, column = values[first], columns[first]
        if end == first + 1:
            squares = zero
            for j in range(n):
                y = max(bias[j] + value * gram[column, j], zero)
                squares += y * y
                row[j] = y
        else:
            for j in range(n):
                row[j] = bias[j] + value * gram[column, j]
            for e in range(first + 1, end - 1):
                value, column = values[e], columns[e]
                for j in range(n):
                    row[j] += value * gram[column, j]
            value, column = values[end - 1], columns[end - 1]
            squares = zero
            for j in range(n):
                y = max(row[j] + value * gram[column, j], zero)
                squares += y * y
                row[j] = y
        total += squares
        for e in range(first, end):
            j, x = active[columns[e]], values[e]
            y = row[j]
            total += x * (x - 2 * y)  # (y - x)^2 in place of y^2
            row[j] = y - x if y > 0 else zero
        value, column = values[first], columns[first]
        for j in range(n):
            bias_grad[j] += row[j]
            gram_grad[column, j] += value * row[j]
        for e in range(first + 1, end):
            value, column = values[e], columns[e]
            for j in range(n):
                gram_grad[column, j] += value * row[j]
    return total


@_jit_sums
def squared_errors(  # type: ignore[no-untyped-def]
    gram, bias, active, starts, columns, values, n_empty, errors, row
):
    """Sum over rows and outputs of (y - x)^2; adds each output's share to errors [n] (float64)."""
    n = bias.shape[0]
    zero = bias.dtype.type(0)
    total = 0.0
    for j in range(n):
        y = np.float64(max(bias[j], zero))
        errors[j] += n_empty * y * y
        total += n_empty * y * y
    for r in range(starts.shape[0] - 1):
        for j in range(n):
            row[j] = bias[j]
        for e in range(starts[r], starts[r + 1]):
            value, column = values[e], columns[e]
            for j in range(n):
                row[j] += value * gram[column, j]
        for j in range(n):
            row[j] = max(row[j], zero)
        for e in range(starts[r], starts[r + 1]):
            row[active[columns[e]]] -= values[e]
        for j in range(n):
            square = np.float64(row[j]) * row[j]
            errors[j] += square
            total += square
    return total


@_jit_sums
def add_rows(target, rows, source):  # type: ignore[no-untyped-def]
    """target[rows[k]] += source[k]; `rows` are distinct."""
    for k in range(rows.shape[0]):
        for c in range(target.shape[1]):
            target[rows[k], c] += source[k, c]


@_jit_sums
def adamw(  # type: ignore[no-untyped-def]
    weights, grad, first, second, grad_scale, lr, decay, step_size, second_scale, beta1, beta2, eps
):
    """One step of AdamW in place on weights [row column], decay decoupled and by row.

    decay >= 0: w -= lr decay w. decay < 0: w -= lr decay w (1 / ||w|| - 1), which pulls norms to 1.
    Then w -= step_size m / (sqrt(v) second_scale + eps), with the bias corrections in step_size =
    lr / (1 - beta1^t) and second_scale = 1 / sqrt(1 - beta2^t).
    """
    one = weights.dtype.type(1)
    for i in range(weights.shape[0]):
        keep = one
        if decay >= 0:
            keep -= lr * decay
        else:
            square = weights.dtype.type(0)
            for c in range(weights.shape[1]):
                square += weights[i, c] * weights[i, c]
            if square > 0:  # a row of zeros has no direction to grow in
                keep = one - lr * decay * (one / np.sqrt(square) - one)
        for c in range(weights.shape[1]):
            g = grad[i, c] * grad_scale
            m = beta1 * first[i, c] + (one - beta1) * g
            v = beta2 * second[i, c] + (one - beta2) * g * g
            first[i, c], second[i, c] = m, v
            weights[i, c] = keep * weights[i, c] - step_size * m / (np.sqrt(v) * second_scale + eps)
