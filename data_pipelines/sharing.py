"""How many rows a batch has, and how processes and devices share them."""

from __future__ import annotations

import math
from typing import NamedTuple


def fitting_batch(batch_size: int, count: int, devices: int) -> int:
    """The batch size, halved as long as `count` rows fit and the devices share it equally: little is computed for
    nothing where a split is small, and the sizes, each of which is compiled, stay few.
    """
    while batch_size % (2 * devices) == 0 and batch_size // 2 >= count:
        batch_size //= 2
    return batch_size


class Share(NamedTuple):
    """This process's part of every global batch.

    Attributes:
      process_index, process_count: which process it is, of how many.
      devices: of all processes together; they share an evaluation's batch equally.
    """

    process_index: int = 0
    process_count: int = 1
    devices: int = 1

    @property
    def parts(self) -> int:
        """What the rows of an evaluation's batch are a multiple of."""
        return math.lcm(self.devices, self.process_count)

    def rows_of(self, batch_size: int) -> int:
        """Rows of a global batch that this process reads.

        Raises:
          ValueError: an empty batch, one that the processes cannot share equally, or a process that is none of them.
        """
        if batch_size <= 0 or batch_size % self.process_count:
            raise ValueError(f"a batch of {batch_size} cannot be shared equally by {self.process_count} processes")
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"there is no process {self.process_index} of {self.process_count}")
        return batch_size // self.process_count
