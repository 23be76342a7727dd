# SPDX-License-Identifier: Apache-2.0
"""The genai-bundle format: read, check and write `.genai` files. Knows nothing of running them.

`genai_bundle.bundle.open_bundle` is the way in for readers, `genai_bundle.writer.write_bundle` for writers.
"""

__version__ = "0.1.0"

FORMAT_VERSION = "1.0"
"""The format version that this package writes, and the newest whose keys it knows."""
