"""How much fits into a device's memory: pixels of one picture, rows of one forward. Knows no tensor.

On CUDA both prices are measured at warm-up. A CPU has no peak that could be read without disturbing it; there they are
what Stable Diffusion 1.5 takes in float32, rounded up, and the budget is a part of the machine's memory.
"""

from dataclasses import dataclass

# Of the memory that is free when it is measured, the rest is left to what grows: cached embeddings, parked requests.
FREE_SHARE = 0.9

CPU_SHARE = 0.75
CPU_BYTES_PER_ROW_PIXEL = 1024.0
CPU_BYTES_PER_DECODED_PIXEL = 4096.0

# With guidance a request takes two rows, which no forward can part.
ROWS_OF_WIDEST_REQUEST = 2


@dataclass(frozen=True)
class MemoryBound:
    """What forwards and decodes of one model may take, and what they do take for each pixel of their pictures."""

    budget_bytes: float
    bytes_per_row_pixel: float
    bytes_per_decoded_pixel: float

    def stricter(self, other: "MemoryBound") -> "MemoryBound":
        """Take of both the smaller budget and the greater prices."""
        return MemoryBound(
            min(self.budget_bytes, other.budget_bytes),
            max(self.bytes_per_row_pixel, other.bytes_per_row_pixel),
            max(self.bytes_per_decoded_pixel, other.bytes_per_decoded_pixel),
        )

    @property
    def max_pixels(self) -> int:
        """Pixels of the largest picture of which one request can be stepped while another is decoded."""
        per_pixel = ROWS_OF_WIDEST_REQUEST * self.bytes_per_row_pixel + self.bytes_per_decoded_pixel
        return int(self.budget_bytes / per_pixel)

    def max_rows(self, num_pixels: int) -> int:
        """Rows of the largest forward of so many pixels a picture, beside the decode of one."""
        left_bytes = self.budget_bytes - self.bytes_per_decoded_pixel * num_pixels
        return max(1, int(left_bytes / (self.bytes_per_row_pixel * num_pixels)))


def cpu_bound(memory_bytes: int) -> MemoryBound:
    """Say what fits into a machine with so much memory."""
    return MemoryBound(CPU_SHARE * memory_bytes, CPU_BYTES_PER_ROW_PIXEL, CPU_BYTES_PER_DECODED_PIXEL)
