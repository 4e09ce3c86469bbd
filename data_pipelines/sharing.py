"""How many rows a batch has, and how processes and devices share them."""

from __future__ import annotations


def fitting_batch(batch_size: int, count: int, devices: int) -> int:
    """The batch size, halved as long as `count` rows fit and the devices share it equally: little is computed for
    nothing where a split is small, and the sizes, each of which is compiled, stay few.
    """
    while batch_size % (2 * devices) == 0 and batch_size // 2 >= count:
        batch_size //= 2
    return batch_size


def rows_of_process(batch_size: int, process_index: int, process_count: int) -> int:
    """Rows of a global batch that a process reads.

    Raises:
      ValueError: an empty batch, one that the processes cannot share equally, or a process that is none of them.
    """
    if batch_size <= 0 or batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} cannot be shared equally by {process_count} processes")
    if not 0 <= process_index < process_count:
        raise ValueError(f"there is no process {process_index} of {process_count}")
    return batch_size // process_count
